"""``python -m benchmarks``."""

if __name__ == "__main__":
    from benchmarks.cli import main

    main()
