"""Fuzzers: each module in ``targets`` is one way into the broker, ``make fuzz`` runs them for long, and test_fuzz.py for a moment."""
