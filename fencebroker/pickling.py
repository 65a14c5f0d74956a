"""Pickling descriptors towards another process: only multiprocessing can, for it sends them along."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["duplicate", "is_multiprocessing_at_it"]

_PICKLER = "multiprocessing.reduction"


def is_multiprocessing_at_it() -> bool:
    """Whether a pickler of multiprocessing's has called.

    Registering with it would import it: a third of what this library takes to load, and most programs never need it.
    """
    if _PICKLER in sys.modules:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_globals.get("__name__") == _PICKLER:
                return True
            frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return False


def duplicate(fd: int) -> Any:
    """What stands for a descriptor in a pickle of multiprocessing's; ``detach`` makes it one again, in the other process."""
    from multiprocessing import reduction

    return reduction.DupFd(fd)
