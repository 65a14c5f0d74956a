"""The broker: owns timelines and fences, and hands out eventfds that signal when a fence does.

It opens nothing at run time but eventfds and socketpairs, and asks no name service.
``core`` decides and does no I/O; ``shell`` acts; ``cli`` is the command; ``keeper`` starts a broker anew when it dies.
"""

from typing import Any

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    """Import the version when it is asked for: the keeper imports this package, and nothing else of the project."""
    if name == "__version__":
        from fencebroker import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
