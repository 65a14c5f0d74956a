"""The broker: owns timelines and fences, and hands out eventfds that signal when a fence does.

It opens nothing at run time but eventfds and socketpairs, starts no other program, and asks no name service.
``core`` decides and does no I/O; ``shell`` acts; ``cli`` is the command.
"""

from fencebroker import __version__

__all__ = ["__version__"]
