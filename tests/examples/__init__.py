"""Every example of the documentation, run as its reader would run it."""
