"""The listening socket that the broker makes itself: one broker per path, a live one is not disturbed, a stale one is replaced."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from fencebroker.fds import OwnedFd
from fencebrokerd.config import ConfigError
from fencebrokerd.shell.record import Listening

__all__ = ["Listener"]

BACKLOG = 256


class Listener:
    """Owns a bound path, its lock, and the socket.

    The lock (``PATH.lock``, held for life, left behind empty) makes two brokers that start at once one broker.
    """

    def __init__(self, path: Path, mode: int, left: Iterable[int] = ()) -> None:
        """Bind ``path``; ConfigError when it is in use by a live broker, or is something else than a socket.

        ``left``: descriptors that a broker of this table left which died before it had a record.  Its lock is used on, and its socket, if it
        listened already: clients may wait in it.
        """
        self.path = path
        self._lock = _lock(path, _find_lock(path, left))
        try:
            sock = _find_listening(path, left)
            self.socket = _listen(path, mode) if sock is None else sock
        except BaseException:
            self._lock.close()
            raise
        found = os.lstat(path)
        self._identity = found.st_dev, found.st_ino

    @classmethod
    def adopt(cls, entry: Listening) -> Self:
        """Go on with what another broker of this table bound."""
        self = cls.__new__(cls)
        assert entry.path is not None
        assert entry.lock is not None
        assert entry.device is not None
        assert entry.inode is not None
        self.path, self._lock, self._identity = Path(entry.path), OwnedFd(entry.lock), (entry.device, entry.inode)
        sock = socket.socket(fileno=entry.fd)
        sock.listen(BACKLOG)  # whoever asks the kernel who serves here is told who listened last
        sock.detach()
        return self

    def filenos(self) -> tuple[int, int]:
        """The numbers of the socket and of the lock."""
        return self.socket.fileno(), self._lock.fileno()

    def hand_over(self) -> Listening:
        """Give the socket away, and say what the next broker has to know."""
        return Listening(self.socket.detach(), str(self.path), self._lock.fileno(), *self._identity)

    def unlink(self) -> None:
        """Remove the path if it is still ours, and give the lock back."""
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        except FileNotFoundError:
            pass  # somebody removed it; nothing is left to do
        self._lock.close()


def _find_lock(path: Path, left: Iterable[int]) -> OwnedFd | None:
    try:
        wanted = os.stat(f"{path}.lock")
    except OSError:
        return None
    return next((OwnedFd(fd) for fd in left if os.path.samestat(os.fstat(fd), wanted)), None)


def _lock(path: Path, lock: OwnedFd | None) -> OwnedFd:
    try:
        if lock is None:
            lock = OwnedFd(os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as err:
        raise ConfigError(f"{path}: cannot listen here: {path}.lock: {err.strerror}") from err
    try:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"{path}: in use by a live broker; stop it first, or listen elsewhere") from None
    return lock


def _find_listening(path: Path, left: Iterable[int]) -> socket.socket | None:
    for fd in left:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            sock = socket.socket(fileno=fd)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.getsockname() == str(path):
                sock.listen(BACKLOG)  # whoever asks the kernel who serves here is told who listened last
                return sock
            sock.detach()
    return None


def _listen(path: Path, mode: int) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Nobody may connect between bind and chmod: the mode comes from the umask first.
        old = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(old)
        os.chmod(path, mode)
        sock.listen(BACKLOG)
    except OSError as err:
        sock.close()
        # A path that is too long never reaches the kernel: its error has no number.
        raise ConfigError(f"{path}: cannot listen here: {err.strerror or err}") from err
    return sock


def _remove_stale(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as err:
        raise ConfigError(f"{path}: cannot listen here: {err.strerror}") from err
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path}: exists and is not a socket; remove it or listen elsewhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            os.unlink(path)  # its broker is gone
            return
        except BlockingIOError:
            pass  # somebody listens and is busy
        except OSError as err:
            raise ConfigError(f"{path}: exists and cannot be probed: {err.strerror}") from err
    raise ConfigError(f"{path}: in use by a live broker; stop it first, or listen elsewhere")
