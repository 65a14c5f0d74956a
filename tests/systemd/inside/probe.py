"""Runs inside the unit's sandbox: tries what is forbidden and what is needed, and writes what came of each as JSON."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p


def check(result: int | None) -> None:
    """Raise what errno says for a call that failed."""
    if result is None or result == -1 or result == 2**64 - 1:
        raise OSError(ctypes.get_errno(), "call")


def outcome(attempt: Callable[[], object]) -> str:
    """Return the name of the errno, or "done"."""
    try:
        attempt()
    except OSError as err:
        return errno.errorcode.get(err.errno or 0, str(err.errno))
    except ValueError as err:  # what setrlimit makes of EPERM
        return "EPERM" if "not allowed" in str(err) else str(err)
    return "done"


def write(path: str) -> Callable[[], object]:
    return lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def call(name: str, *arguments: object) -> Callable[[], object]:
    return lambda: check(getattr(libc, name)(*arguments))


def syscall(number: int, *arguments: object) -> Callable[[], object]:
    return lambda: check(libc.syscall(number, *arguments))


def change_mode() -> None:
    """A file with the set-uid bit, in the private /tmp."""
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0o4755)


X86_64 = os.uname().machine == "x86_64"
FORBIDDEN: dict[str, tuple[Callable[[], object], str]] = {
    "write in /etc": (write("/etc/probe"), "EROFS"),
    "write in /usr": (write("/usr/probe"), "EROFS"),
    "write in /var": (write("/var/lib/probe"), "EROFS"),
    "write in the socket's folder": (write("/run/fencebroker/probe"), "EROFS"),
    "write in /run/lock, where everybody may": (write("/run/lock/probe"), "EROFS"),
    "change a kernel setting": (write("/proc/sys/kernel/core_pattern"), "ENOENT|EACCES"),
    "read the kernel's log": (lambda: os.close(os.open("/dev/kmsg", os.O_RDONLY)), "ENOENT|EPERM"),
    "read memory": (lambda: os.close(os.open("/dev/mem", os.O_RDONLY)), "ENOENT"),
    "look into a home": (lambda: os.listdir("/home/ada"), "ENOENT|EACCES"),
    "look into root's home": (lambda: os.listdir("/root"), "EACCES"),
    "open an internet socket": (lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(), "EAFNOSUPPORT"),
    "open an IPv6 socket": (lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(), "EAFNOSUPPORT"),
    "open a netlink socket": (lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(), "EAFNOSUPPORT"),
    "open a packet socket": (lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(), "EAFNOSUPPORT"),
    "become root": (lambda: os.setuid(0), "EPERM"),
    "become another group": (lambda: os.setgid(0), "EPERM"),
    "make a user namespace": (call("unshare", 0x10000000), "EPERM"),
    "make a mount namespace": (call("unshare", 0x00020000), "EPERM"),
    "make a network namespace": (call("unshare", 0x40000000), "EPERM"),
    "mount": (call("mount", b"none", b"/tmp", b"tmpfs", 0, None), "EPERM"),
    "change the root": (lambda: os.chroot("/"), "EPERM"),
    "set the clock": (lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()), "EPERM"),  # noqa: TID251 - it is the wall clock
    "set the host's name": (lambda: socket.sethostname("probe"), "EPERM"),
    "become a real-time process": (lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)), "EPERM"),
    "change the personality": (call("personality", 0x0008), "EPERM"),
    "map memory to write and run": (
        lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close(),
        "EPERM",
    ),
    "make a program of a file with the set-uid bit": (change_mode, "EPERM"),
    "make a device": (lambda: os.mknod("/tmp/probe", 0o020600, os.makedev(1, 3)), "EPERM"),
    "trace a process": (call("ptrace", 16, os.getppid(), None, None), "EPERM"),
    "signal somebody else's process": (lambda: os.kill(1, signal.SIGUSR1), "EPERM"),
    "raise its limit of files": (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 19, 1 << 19)), "EPERM"),
    **(
        {
            "reboot": (syscall(169, 0, 0, 0, None), "EPERM"),
            "load a module": (syscall(175, None, 0, b""), "EPERM"),
            "use keys": (syscall(250, 0, 0, 0), "EPERM"),
            "use asynchronous I/O": (syscall(206, 8, ctypes.byref(ctypes.c_ulong())), "EPERM"),
            "load a program into the kernel": (syscall(321, 0, None, 0), "EPERM"),
            "watch performance": (syscall(298, None, 0, -1, -1, 0), "EPERM"),
        }
        if X86_64
        else {}
    ),
}


def raise_limit() -> None:
    """The soft limit may be raised to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def watch_timer() -> None:
    """A timer of the process, around a batch of writes."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def clone() -> None:
    """A process."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        select.select([pidfd], [], [], 5)
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


NEEDED: dict[str, Callable[[], object]] = {
    "eventfd": lambda: os.close(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)),
    "memfd": lambda: os.close(os.memfd_create("probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)),
    "pipe": lambda: list(map(os.close, os.pipe2(os.O_CLOEXEC))),
    "socketpair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
    "epoll": lambda: select.epoll().close(),
    "timerfd": lambda: os.close(libc.timerfd_create(time.CLOCK_MONOTONIC, 0)),
    "itimer": watch_timer,
    "shared memory": lambda: mmap.mmap(-1, 4096).close(),
    "membarrier": syscall(324, 0, 0, 0) if X86_64 else lambda: None,
    "a process and its pidfd": clone,
    "prctl(PR_SET_PDEATHSIG)": call("prctl", 1, 15, 0, 0, 0),
    "raise the soft limit": raise_limit,
    "its own fdinfo": lambda: os.listdir("/proc/self/fdinfo"),
    "a client's name": lambda: os.close(os.open("/proc/1/comm", os.O_RDONLY)),
}

with open("/proc/self/net/dev", encoding="ascii") as stream:
    interfaces = [line.split(":")[0].strip() for line in stream if ":" in line]
json.dump(
    {
        "forbidden": {what: outcome(attempt) for what, (attempt, _) in FORBIDDEN.items()},
        "expected": {what: why for what, (_, why) in FORBIDDEN.items()},
        "needed": {what: outcome(attempt) for what, attempt in NEEDED.items()},
        "seen": {"interfaces": interfaces, "/tmp": os.listdir("/tmp"), "uid": os.getuid()},
    },
    sys.stdout,
)
