"""The example pipeline; see ``__main__.py``."""
