"""The service on a machine with a real systemd, and what of it can be checked without one."""
