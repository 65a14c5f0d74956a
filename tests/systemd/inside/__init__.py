"""Runs on that machine, not here: ``make test-systemd`` boots it."""
