"""Fourth ring: real processes around a real broker."""
