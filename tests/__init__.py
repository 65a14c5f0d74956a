"""The tests, in rings from the pure core outwards.  What they share is in conftest.py and helpers.py."""
