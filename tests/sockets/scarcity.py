"""A process at its descriptor limit, for the length of a ``with``."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import TYPE_CHECKING

from tests.helpers import descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["descriptors_left"]


@contextlib.contextmanager
def descriptors_left(n: int) -> Iterator[None]:
    """Leave room for ``n`` more descriptors and no others: holes between the open ones are filled, and the limit is lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 2 + n, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        filling = []
        with contextlib.suppress(OSError):
            while True:
                filling.append(os.dup(0))
        for fd in filling[len(filling) - n :]:
            os.close(fd)
        for fd in filling[: len(filling) - n]:
            stack.callback(os.close, fd)
        yield
