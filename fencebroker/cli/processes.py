"""What the kernel shows of processes: who holds which descriptors, and in what they sleep.

Facts
  An eventfd has an id in ``/proc/PID/fdinfo``, the same for every holder; a socket has an inode in ``/proc/PID/fd``.  Both can be read for
  one's own processes (PTRACE_MODE_READ), by root for all.
  ``/proc/PID/task/TID/syscall`` names the system call a thread sleeps in, and ``/proc/PID/mem`` has what its arguments point to.  Both need
  the right to attach (PTRACE_MODE_ATTACH), which Yama's ptrace_scope 1 takes from ordinary users.
  After a stop (SIGSTOP) poll is continued as ``restart_syscall``, with the same arguments in the registers.
  A descriptor on its way through a socket is held by nobody that can be seen.
Rule
  What may not be read is counted, never guessed: a process whose system calls cannot be seen *holds*, it does not wait.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import psutil

from fencebroker.model import ProcessInfo

__all__ = ["Holder", "Scan", "Wait", "comm_of", "holder_of", "scan", "uid_of"]

_EVENTFD: Final = "anon_inode:[eventfd]"
_EPOLL: Final = "anon_inode:[eventpoll]"
_FIELDS: Final = re.compile(rb"^eventfd-(count|id|semaphore):\s*(\w+)", re.MULTILINE)
_TARGETS: Final = re.compile(rb"^tfd:\s*(\d+)", re.MULTILINE)
#: As much of a file in fdinfo as is read; an epoll set of a thousand descriptors is 100 KiB.
_MOST: Final = 1 << 20
#: Descriptors in one poll that are looked at.
_MOST_POLLED: Final = 1 << 16
_POLLFD: Final = struct.Struct("ihh")
_POLLIN: Final = 1
#: In /proc/PID/stat: a thread of the kernel.
_PF_KTHREAD: Final = 0x0020_0000

#: The system calls in which one waits for descriptors, by machine.
_CALLS: Final[Mapping[str, Mapping[int, str]]] = {
    "x86_64": {
        0: "read", 7: "poll", 19: "read", 23: "select", 202: "futex", 219: "restart", 232: "epoll", 270: "select", 271: "poll",
        281: "epoll", 441: "epoll", 449: "futex",
    },
    "aarch64": {
        22: "epoll", 63: "read", 65: "read", 72: "select", 73: "poll", 98: "futex", 128: "restart", 441: "epoll", 449: "futex",
    },
}  # fmt: skip


class Eventfd(NamedTuple):
    """One descriptor of an eventfd."""

    fd: int
    id: int
    counter: int
    is_semaphore: bool


class Wait(NamedTuple):
    """A thread sleeps until one of these descriptors is readable."""

    tid: int
    how: str  #: poll, select, read or epoll
    fds: frozenset[int]


@dataclass(slots=True)
class Holder:
    """A process, and what it holds of what was looked for.

    ``waits`` is None where the right to see it is missing.  ``in_epoll`` are descriptors in an epoll set, whether or not anybody sleeps
    there.  ``is_asleep``: every thread of it sleeps, in one of the waits or until another thread wakes it.
    """

    pid: int
    uid: int
    comm: str
    state: str = "?"
    stopped_by: int = 0
    eventfds: list[Eventfd] = field(default_factory=list)
    #: The sockets that were looked for: descriptor -> inode.
    sockets: dict[int, int] = field(default_factory=dict)
    in_epoll: frozenset[int] = frozenset()
    waits: list[Wait] | None = None
    is_asleep: bool = False

    @property
    def who(self) -> ProcessInfo:
        """As the broker speaks of processes."""
        return ProcessInfo(self.pid, self.uid, self.comm)

    def how(self, fd: int) -> str:
        """In what a thread sleeps for a descriptor: ``poll``.  ``epoll set``: in one, and nobody is seen to sleep there.  Else ``holds``."""
        hows = dict.fromkeys(wait.how for wait in self.waits or () if fd in wait.fds)
        return " and ".join(hows) or ("epoll set" if fd in self.in_epoll else "holds")

    @property
    def words(self) -> str:
        """How it is, in words: ``stopped, SIGSTOP``."""
        word = _STATES.get(self.state, "in an unknown state")
        if self.stopped_by:
            with contextlib.suppress(ValueError):
                return f"{word}, {signal.Signals(self.stopped_by).name}"
        return word


_STATES: Final = {
    "R": "running", "S": "asleep", "D": "asleep in the kernel, not to be woken", "T": "stopped", "t": "stopped by a debugger", "Z": "dead, not waited for",
    "X": "dead", "I": "idle",
}  # fmt: skip


@dataclass(slots=True)
class Scan:
    """The processes that hold something of what was looked for, by pid; and how many could not be looked at."""

    holders: dict[int, Holder]
    n_seen: int = 0
    n_unseen: int = 0


def scan(inodes: Iterable[int], *, passing_over: Collection[int] = ()) -> Scan:
    """Look at every process: who holds eventfds, or a socket with one of these inodes.  Pids in ``passing_over`` are left out."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found = Scan({})
    for pid in psutil.pids():
        if pid in passing_over:
            continue
        try:
            holder = _look(pid, wanted)
        except PermissionError:
            found.n_unseen += not _is_of_the_kernel(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        else:
            found.n_seen += 1
            if holder is not None:
                found.holders[pid] = holder
    return found


def holder_of(pid: int, inodes: Iterable[int] = ()) -> Holder:
    """Look at one process.  ProcessLookupError when there is none, PermissionError when one may not look."""
    try:
        wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
        return _look(pid, wanted) or _described(Holder(pid, uid_of(pid), comm_of(pid)))
    except FileNotFoundError as err:
        raise ProcessLookupError(3, "no such process") from err


def _look(pid: int, wanted: Mapping[str, int]) -> Holder | None:
    folder = f"/proc/{pid}/fd"
    eventfds: list[Eventfd] = []
    epolls: list[int] = []
    sockets: dict[int, int] = {}
    for name in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{name}")
            if target == _EVENTFD:
                eventfds.append(_eventfd(pid, int(name)))
            elif target == _EPOLL:
                epolls.append(int(name))
            elif target in wanted:
                sockets[int(name)] = wanted[target]
        except (FileNotFoundError, ValueError):
            continue  # closed meanwhile, or another file by now
    if not eventfds and not sockets:
        return None
    holder = Holder(pid, uid_of(pid), comm_of(pid), eventfds=eventfds, sockets=sockets)
    sets = {epoll: _targets(pid, epoll) for epoll in epolls}
    holder.in_epoll = frozenset().union(*sets.values())
    return _described(holder, sets)


def _eventfd(pid: int, fd: int) -> Eventfd:
    fields = dict(_FIELDS.findall(_read(f"/proc/{pid}/fdinfo/{fd}")))
    try:
        return Eventfd(fd, int(fields[b"id"]), int(fields[b"count"], 16), fields.get(b"semaphore", b"1") == b"1")
    except KeyError as err:
        raise ValueError("no eventfd any more") from err


def _targets(pid: int, epoll: int) -> frozenset[int]:
    try:
        return frozenset(map(int, _TARGETS.findall(_read(f"/proc/{pid}/fdinfo/{epoll}"))))
    except FileNotFoundError:
        return frozenset()


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        blocks = []
        size = 0
        while size < _MOST and (block := os.read(fd, 65536)):
            blocks.append(block)
            size += len(block)
        return b"".join(blocks)
    finally:
        os.close(fd)


def comm_of(pid: int) -> str:
    """Return a process's command name; FileNotFoundError or ProcessLookupError when it has ended."""
    return _read(f"/proc/{pid}/comm").rstrip(b"\n").decode(errors="backslashreplace")


def uid_of(pid: int) -> int:
    """Return whose process it is."""
    return os.stat(f"/proc/{pid}").st_uid


def _stat(path: str) -> list[str]:
    """Return the fields of a stat file from the third on; the second is a name that may hold anything."""
    return _read(path).rpartition(b")")[2].decode("ascii", "replace").split()


def _is_of_the_kernel(pid: int) -> bool:
    try:
        return bool(int(_stat(f"/proc/{pid}/stat")[6]) & _PF_KTHREAD)
    except (OSError, IndexError, ValueError):
        return True  # ended meanwhile: nothing was missed


# -- what it does


def _described(holder: Holder, sets: Mapping[int, frozenset[int]] | None = None) -> Holder:
    """Add how a process is, and for what its threads wait."""
    fields = _stat(f"/proc/{holder.pid}/stat")
    holder.state = fields[0]
    if holder.state == "T":
        # The last field is an exit code, and of a stopped process the signal; it is 0 for who may not see it.
        holder.stopped_by = int(fields[-1]) & 0x7F
    try:
        calls = list(_calls(holder.pid))
    except PermissionError:
        return holder
    holder.waits = []
    holder.is_asleep = holder.state not in "RZX"
    for tid, call, arguments in calls:
        if call == "futex":
            continue
        fds = _awaited(holder.pid, tid, call, arguments, sets or {})
        if fds:
            holder.waits.append(Wait(tid, "poll" if call == "restart" else call, fds))
        else:
            holder.is_asleep = False
    return holder


def _calls(pid: int) -> Iterator[tuple[int, str, list[int]]]:
    """Yield what each thread sleeps in, as far as it matters here: its number, the call, the arguments."""
    known = _CALLS.get(platform.machine(), {})
    for name in os.listdir(f"/proc/{pid}/task"):
        try:
            words = _read(f"/proc/{pid}/task/{name}/syscall").split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if not words or not words[0].isdigit():
            yield int(name), "running", []
        else:
            yield int(name), known.get(int(words[0]), "other"), [int(word, 16) for word in words[1:7]]


def _awaited(pid: int, tid: int, call: str, arguments: list[int], sets: Mapping[int, frozenset[int]]) -> frozenset[int]:
    """Return the descriptors a thread sleeps for; none when it sleeps for something else."""
    match call:
        case "read":
            return frozenset({arguments[0] & 0xFFFF_FFFF})
        case "epoll":
            return sets.get(arguments[0] & 0xFFFF_FFFF, frozenset())
        case "poll":
            return _polled(pid, arguments)
        case "restart":
            return _polled(pid, arguments) if _sleeps_in_poll(pid, tid) else frozenset()
        case "select":
            return _selected(pid, arguments)
    return frozenset()


def _sleeps_in_poll(pid: int, tid: int) -> bool:
    try:
        return b"poll" in _read(f"/proc/{pid}/task/{tid}/wchan")
    except OSError:
        return False


def _polled(pid: int, arguments: list[int]) -> frozenset[int]:
    count = min(arguments[1] & 0xFFFF_FFFF, _MOST_POLLED)
    memory = _memory(pid, arguments[0], count * _POLLFD.size)
    whole = memory[: len(memory) // _POLLFD.size * _POLLFD.size]
    return frozenset(fd for fd, events, _ in _POLLFD.iter_unpack(whole) if fd >= 0 and events & _POLLIN)


def _selected(pid: int, arguments: list[int]) -> frozenset[int]:
    count = min(arguments[0] & 0xFFFF_FFFF, _MOST_POLLED)
    memory = _memory(pid, arguments[1], (count + 7) // 8) if arguments[1] else b""
    return frozenset(8 * n + bit for n, octet in enumerate(memory) for bit in range(8) if octet >> bit & 1)


def _memory(pid: int, address: int, size: int) -> bytes:
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, size, address)
    except (OSError, OverflowError):  # it runs again and the address is gone, or it never was one
        return b""
    finally:
        os.close(fd)
