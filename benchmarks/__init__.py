"""What a signal through the broker costs, beside the things it stands on: run ``python -m benchmarks``."""
