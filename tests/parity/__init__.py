"""Every row that docs/parity.md compares with the kernel, shown."""
