"""The broker's end of every signal ring: the memory, and the order of stores, barriers and looks that the other end relies on.

What is done with the entries is the core's.  ``tests/models/ring.py`` explores the order of the steps here against those of a producer.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl
from typing import Final

from fencebroker.fds import OwnedFd
from fencebroker.mapping import Mapping, barrier, has_barrier
from fencebroker.ring import RING_BYTES, Entry, Nonsense, Reader, Torn

__all__ = ["Rings"]

#: A client cannot take away what we have mapped, nor forbid the next broker to map it.
_SEALS: Final = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL
#: Here stores become visible in the order in which they are made: an entry is there before the head that counts it.
_IN_ORDER: Final = os.uname().machine == "x86_64"


class _Ring:
    __slots__ = ("armed", "fd", "mapping", "reader")

    def __init__(self, fd: OwnedFd, taken: int, at: int) -> None:
        self.fd = fd
        self.mapping = Mapping(fd.fileno(), RING_BYTES)
        self.reader = Reader(self.mapping.view, taken, at)
        self.armed = 0

    def close(self) -> None:
        self.reader.close()
        self.mapping.close()
        self.fd.close()


class Rings:
    """Owns the memory of each ring, by its timeline's socket."""

    def __init__(self) -> None:
        self._rings: dict[int, _Ring] = {}

    def create(self, socket_id: int) -> int:
        """Make a ring; returns its descriptor, borrowed.  OSError is the kernel's, ENOSYS where it has no barrier."""
        if not has_barrier():
            raise OSError(errno.ENOSYS, "membarrier does not work here")
        fd = OwnedFd(os.memfd_create("fencebroker-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            os.fchmod(fd.fileno(), 0o600)
            os.ftruncate(fd.fileno(), RING_BYTES)
            fcntl(fd.fileno(), F_ADD_SEALS, _SEALS)
            self._rings[socket_id] = _Ring(fd, 0, 0)
        except BaseException:
            fd.close()
            raise
        return fd.fileno()

    def adopt(self, socket_id: int, fd: int, taken: int, at: int) -> None:
        """Take over a ring of another broker of this table, of which ``taken`` entries are on record.  OSError is the kernel's."""
        self._rings[socket_id] = _Ring(OwnedFd(fd), taken, at)

    def entries(self) -> dict[int, int]:
        """Which descriptor each ring's memory is."""
        return {socket_id: ring.fd.fileno() for socket_id, ring in self._rings.items()}

    def __len__(self) -> int:
        return len(self._rings)

    def __contains__(self, socket_id: int) -> bool:
        return socket_id in self._rings

    def number(self, socket_id: int) -> int:
        """The descriptor of a ring's memory, borrowed."""
        return self._rings[socket_id].fd.fileno()

    def has_more(self, socket_id: int) -> bool:
        """Whether something was committed since the last ``read``.  Nonsense when that cannot be."""
        ring = self._rings.get(socket_id)
        return ring is not None and ring.reader.head() != ring.reader.taken

    def read(self, socket_id: int, now: int) -> list[Entry]:
        """Return what was committed since the last call, of a ring that had more.  Nonsense when no honest producer leaves it so."""
        reader = self._rings[socket_id].reader
        head = reader.head()
        if head == reader.taken:  # it had more a moment ago: the word is the client's
            return []
        if not _IN_ORDER:
            barrier()
        try:
            entries = reader.read(head, now)
        except Torn:
            barrier()  # after that whatever was stored before the head is there
            try:
                entries = reader.read(head, now)
            except Torn as err:
                raise Nonsense(str(err)) from err
        reader.take(entries)
        return entries

    def free(self, socket_id: int) -> None:
        """Give the places of what was read back, once all of it is on record."""
        ring = self._rings.get(socket_id)
        if ring is not None:
            ring.reader.free()

    def arm(self, wanted: Iterable[tuple[int, int]]) -> list[int]:
        """Store at which value each producer is to ring, 0 for never.  Returns the rings to be read again: what was committed before that could
        be seen is not rung for.
        """
        lowered = []
        for socket_id, value in wanted:
            ring = self._rings.get(socket_id)
            if ring is not None and value != ring.armed:
                if value and (not ring.armed or value < ring.armed):
                    lowered.append(socket_id)
                ring.armed = value
                ring.reader.arm(value)
        if lowered:
            barrier()
        return lowered

    def freeze(self, socket_ids: Iterable[int]) -> None:
        """Have producers write nothing by themselves; what they had committed before that can be read now."""
        for socket_id in socket_ids:
            if socket_id in self._rings:
                self._rings[socket_id].reader.freeze(True)
        barrier()

    def thaw(self, socket_id: int) -> None:
        """Let it write again, when every eventfd says what was decided."""
        if socket_id in self._rings:
            self._rings[socket_id].reader.freeze(False)

    def saw(self, socket_id: int, counter: int) -> None:
        """Say that the producer's packets up to ``counter`` were handled, and what they brought about was done."""
        ring = self._rings.get(socket_id)
        if ring is not None:
            ring.reader.saw(counter)

    def close(self, socket_id: int) -> None:
        """Let go of a ring, if there is one."""
        ring = self._rings.pop(socket_id, None)
        if ring is not None:
            ring.close()

    def close_all(self) -> None:
        """Let go of every ring."""
        for socket_id in list(self._rings):
            self.close(socket_id)
