"""The keeper: a process that only waits, and starts the broker anew when it dies.

Facts
  The broker is cloned with CLONE_FILES: keeper, broker and reaper have one table of descriptors.  A broker that is killed takes none of them
  along, and the next one finds each at its number.  Nobody who shares the table may exec: that would give him a table of his own.
  What a clone has imported is what the keeper had; so the keeper imports nothing of the project but this file, and each broker the rest.
  The page is one page of memory that all three share, at the head of the journal's memfd.  A word of it is stored and loaded at once.
Rules
  The keeper decides nothing about fences.  Only when five brokers in a row could not even recover does it end what they left behind: it writes
  ECANCELED into every fence that is active.  If the keeper itself is killed, the kernel says so to the broker (PR_SET_PDEATHSIG), which
  completes everything and ends.
  It wakes when a child ends or stops, on a signal, and while a broker works every few seconds to see whether it still moves; never else.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final, NoReturn

__all__ = [
    "JOURNAL_BYTES",
    "PAGE_BYTES",
    "PRIORITIES",
    "STEP_ASIDE",
    "Keeper",
    "Page",
    "Reaper",
    "hold_standard_streams",
    "leave",
    "log_line",
    "main",
    "make_keeper",
    "stderr_is_journal",
]

PAGE_BYTES: Final = 4096
#: Address space for the two halves of the journal; memory is only used for what is written.
JOURNAL_BYTES: Final = 2 * 128 * 1024 * 1024
#: And behind them for the users to whom descriptors are charged that wait to be closed: uid + 1 for each number, four bytes each.
OWNERS_BYTES: Final = 4 * 1024 * 1024

# Words of the page.
GENERATION: Final = 0  #: which broker this is, from 1
READY: Final = 1  #: it serves
TURN: Final = 2  #: grows by one when a turn of the broker's loop begins, and when it ends: odd while it works
ARMED: Final = 3  #: the timer that looks after it runs
RECOVERIES: Final = 4
HALF: Final = 5  #: which half of the journal counts
LENGTH: Final = 6  #: bytes that count in the first half; the next word: in the second
HAND: Final = 8  #: the packet in hand: kind (0: none), where it came from, its serial
CONDEMNED: Final = 11  #: a packet that ended two brokers in a row, in the same form
ACCEPTING: Final = 14  #: a connection is being taken in
STARTED: Final = 18  #: when the first broker began (CLOCK_MONOTONIC, ns)
RELOADS: Final = 19
PUBLISHED: Final = 20  #: how far into the journal events were told to those who follow them
BASE: Final = 21  #: how long the journal was when it was last written anew
SAID_READY: Final = 22  #: who started it was told that it serves
STEPPED_ASIDE: Final = 23  #: the last broker made way on purpose
# 24 is the journal's (shell/journal.py).
LANE: Final = 32  #: from here on, for each of ``LANES`` reapers, the ``LANE_WORDS`` words below
LANE_WORDS: Final = 5
PID: Final = 0  #: its process; 0: there is none
USER: Final = 1  #: for whom it closes, uid + 1; 0: nobody
TAKEN: Final = 2  #: the number, in the order of this broker, of what it has begun to close
CLOSED: Final = 3  #: and of what it has closed
STUCK: Final = 4  #: it works for a broker that is gone, and does not come out of its close
_REASON: Final = 1024  # text: why the last broker ended
_VERSION: Final = 1536  # text: the version that the keeper was started with

#: Level of a line of the log -> journal priority (syslog.h).
PRIORITIES: Final = {"error": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}

#: Exit code of a broker that makes way for the next one.
STEP_ASIDE: Final = 75
#: A broker at work is looked at so often.  One that has used so much processor time since, and is still in the same turn, hangs; so does one
#: that is in the same turn after ``LOOKS``, whatever it waits for.  On a machine that is busy otherwise, a turn may just take long.
LOOK_SECONDS: Final = 2.5
LOOKS: Final = 12
#: So many brokers in a row that could not recover end it all.
FAILURES: Final = 5
#: So many reapers at a time, which is so many users of whom something is being closed.
LANES: Final = 4
#: A close that can be interrupted may take so long.
LINGER_SECONDS: Final = 0.02
#: A broker that lived shorter than this, and was not killed from outside, is followed after a pause that doubles each time, to at most the second.
SHORT_LIFE_NS: Final = 1_000_000_000
PAUSES: Final = (0.05, 1.0)

_CLONE_FILES: Final = 0x400
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_TIMERFD_FLAGS: Final = 0o2004000  # TFD_CLOEXEC | TFD_NONBLOCK
_MEMBARRIER_GLOBAL: Final = 1
_CPUCLOCK_SCHED: Final = 2  #: with a pid: the clock of that process's processor time
#: clone, timerfd_create, timerfd_settime, membarrier
_NUMBERS: Final = {"x86_64": (56, 283, 286, 324), "aarch64": (220, 85, 86, 283)}
_SYSCALLS: Final = _NUMBERS.get(os.uname().machine)
#: What each broker needs of the standard library, which no reload can replace anyway: imported once, for all of them.
_STANDARD: Final = (
    "array", "ast", "dataclasses", "datetime", "enum", "fcntl", "functools", "gettext", "grp", "heapq", "importlib", "inspect", "ipaddress", "itertools",
    "pathlib", "pickle", "pwd", "re", "selectors", "socket", "struct", "subprocess", "termios", "threading", "tomllib", "typing", "uuid", "weakref", "zlib",
)  # fmt: skip
#: The status -ECANCELED, as ``fencebroker.fds.status_word`` encodes it.
_CANCELED: Final = 2**63 + (125 << 48) + 2**47
_FAULTS: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP})
_WATCHED: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

#: With the GIL held: between the two halves of a fork nobody else may run.
_python: Final = ctypes.PyDLL(None, use_errno=True)
_python.syscall.restype = ctypes.c_long


def _syscall(index: int, *arguments: int) -> int:
    if _SYSCALLS is None:
        raise OSError(38, f"fencebrokerd does not know this machine's system calls ({os.uname().machine}); --no-keeper runs without them")
    result = int(_python.syscall(ctypes.c_long(_SYSCALLS[index]), *map(ctypes.c_long, arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def clone() -> int:
    """Fork a child with which this process goes on sharing its descriptors; returns its pid, and 0 in the child."""
    _python.PyOS_BeforeFork()
    pid = -1
    try:
        pid = _syscall(0, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
    finally:
        if pid == 0:
            _python.PyOS_AfterFork_Child()
        else:
            _python.PyOS_AfterFork_Parent()
    return pid


def leave(code: int) -> NoReturn:
    """End this process, but nothing of what it has open: the interpreter's own end would close what the next broker goes on with."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it
            stream.flush()
    os._exit(code)


def end_with_parent(parent: int, number: int) -> None:
    """Ask for the signal ``number`` when ``parent`` ends; if it has ended already, send it now."""
    _python.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def hide_memory() -> None:
    """Let nobody but root look into this process and those it clones.

    Another process of the same user could otherwise trace it, or copy descriptors out of the table (pidfd_getfd).
    """
    _python.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0)
    try:
        os.close(os.open("/proc/self/fdinfo/0", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:  # before Linux 5.14 these files belong to root then, and the broker reads its own
        _python.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0)


def serves_others(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether this is a service for several users: its sockets are passed, and it is no user's own, which stays open to that user's debugger."""
    return "LISTEN_FDS" in environment and "--user" not in arguments


def hold_standard_streams() -> None:
    """Open /dev/null where standard input, output or error is closed: what is written there must not reach a client's descriptor."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stderr is None:  # it was closed when the interpreter started
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for the life of the process


class Page:
    """Owns the memfd that page and journal are in, its mapping, which every clone has too, and the timer that looks after a broker at work.

    ``words`` is the page.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("fencebroker-journal", os.MFD_CLOEXEC)
        os.fchmod(self.fd, 0o600)
        size = PAGE_BYTES + JOURNAL_BYTES + OWNERS_BYTES
        os.ftruncate(self.fd, size)
        # CPython's mapping keeps a duplicate of its own, the lowest number that is free: nobody else may close that.
        self.duplicate = os.dup(self.fd)
        os.close(self.duplicate)
        self.map = mmap.mmap(self.fd, size)
        self.words = memoryview(self.map)[:PAGE_BYTES].cast("Q")
        self.owners = memoryview(self.map)[PAGE_BYTES + JOURNAL_BYTES :].cast("I")
        self.keeper = os.getpid()
        self.timer = _syscall(1, time.CLOCK_MONOTONIC, _TIMERFD_FLAGS)
        self._moment = (ctypes.c_long * 4)(0, 0, int(LOOK_SECONDS), int(LOOK_SECONDS % 1 * 1e9))

    def arm(self) -> None:
        """Have the keeper look at the broker in a while."""
        self.words[ARMED] = 1
        _syscall(2, self.timer, 0, ctypes.addressof(self._moment), 0)

    @property
    def reason(self) -> str:
        """Why the last broker that was replaced had died; empty when none has."""
        return self._text(_REASON)

    @reason.setter
    def reason(self, text: str) -> None:
        self._set_text(_REASON, text)

    @property
    def version(self) -> str:
        """The version of the keeper's code: what the first broker said of itself."""
        return self._text(_VERSION)

    @version.setter
    def version(self, text: str) -> None:
        self._set_text(_VERSION, text)

    def _text(self, at: int) -> str:
        return bytes(self.map[at : at + 512]).rstrip(b"\0").decode(errors="replace")

    def _set_text(self, at: int, text: str) -> None:
        self.map[at : at + 512] = text.encode(errors="replace")[:511].ljust(512, b"\0")


class Reaper:
    """Processes that close descriptors whose closing may block: each for one user at a time, started when there is something to close.

    Owns the pipes that carry the numbers, and an eventfd that says when something was closed.  Processes, not threads: a thread that is stuck
    in a close keeps a killed process from ending.  A close may be stuck for ever, even in a process that was killed (a FUSE file whose server
    does not answer): so nobody's close waits for another user's, and there are never more than ``LANES`` that are stuck.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self.pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(LANES)]
        for _, writable in self.pipes:
            os.set_blocking(writable, False)
        self.closed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the table holds of them."""
        return self.closed, *(end for pipe in self.pipes for end in pipe)

    def start(self) -> None:
        """Start those that have a user and do not run, and always the first: others come in when there is something for them."""
        parent, words = os.getpid(), self._page.words
        for lane in range(LANES):
            at = LANE + lane * LANE_WORDS
            if (words[at + USER] or not lane) and not words[at + PID]:
                try:
                    pid = clone()
                except OSError:  # the machine has no room for another process now; whoever has something to close asks again
                    return
                if pid == 0:
                    self._run(parent, lane)
                words[at + PID] = pid

    def _run(self, parent: int, lane: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for number in _WATCHED:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, _ignore)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            end_with_parent(parent, signal.SIGKILL)
            words, at, numbers = self._page.words, LANE + lane * LANE_WORDS, self.pipes[lane][0]
            while True:
                record = os.read(numbers, 8)
                words[at + TAKEN] = int.from_bytes(record[4:], "little")
                # What can be interrupted (a socket that lingers) is.
                signal.setitimer(signal.ITIMER_REAL, LINGER_SECONDS, LINGER_SECONDS)
                with contextlib.suppress(OSError):  # a late write error of a file that was never ours; the number is free either way
                    os.close(int.from_bytes(record[:4], "little"))
                signal.setitimer(signal.ITIMER_REAL, 0)
                words[at + CLOSED] = words[at + TAKEN]
                self._tell()
        finally:
            os._exit(0)

    def _tell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self.closed, (1).to_bytes(8, sys.byteorder))

    def bury(self, pid: int) -> None:
        """One of the children has ended.  If somebody killed one at work, another goes on; one that was stuck leaves its place."""
        words = self._page.words
        for at in range(LANE, LANE + LANES * LANE_WORDS, LANE_WORDS):
            if words[at + PID] == pid:
                words[at + PID] = 0
                words[at + CLOSED] = words[at + TAKEN]
                if words[at + STUCK]:
                    words[at + STUCK] = words[at + USER] = 0
                self._tell()
                self.start()

    def end(self) -> None:
        """Kill them, and empty the pipes: what they have not begun to close stays open, for the next broker to find.

        One that is stuck cannot be killed: it keeps its place, and its user, until it comes out of its close.
        """
        words = self._page.words
        poll = select.poll()
        dying: dict[int, int] = {}
        for at in range(LANE, LANE + LANES * LANE_WORDS, LANE_WORDS):
            if words[at + STUCK]:
                continue
            words[at + TAKEN] = words[at + CLOSED] = 0
            if not words[at + PID]:
                words[at + USER] = 0
                continue
            pidfd = os.pidfd_open(words[at + PID])
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll.register(pidfd, select.POLLIN)
            dying[pidfd] = at
        deadline = time.monotonic() + 1
        # One that sleeps in the kernel is not awaited: whenever it comes out of there, it ends.
        while time.monotonic() < deadline and not all(_sleeps(words[at + PID]) for at in dying.values()):
            for pidfd, _ in poll.poll(10):
                poll.unregister(pidfd)
                os.close(pidfd)
                at = dying.pop(pidfd)
                words[at + PID] = words[at + USER] = 0
        for pidfd, at in dying.items():
            os.close(pidfd)
            words[at + STUCK] = 1
        for numbers, _ in self.pipes:
            os.set_blocking(numbers, False)
            with contextlib.suppress(BlockingIOError):
                while os.read(numbers, 65536):
                    pass
            os.set_blocking(numbers, True)


class Keeper:
    """Runs one broker after the other until one ends in order."""

    def __init__(self) -> None:
        self.page = Page()
        self.reaper = Reaper(self.page)
        self._wakes, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stop = 0  # the signal that ends it all, once it came
        self._broker = 0  #: its pid while it lives
        self._is_asked = False  #: to reload
        self._rehearsal = 0
        self._killed_for = ""
        self._seen = (0, 0, 0.0)  # a turn, how often it was looked at, and the processor time used before
        self._failures = 0
        self._crashes = 0
        self._is_own_fault = False
        self._blamed = (0, 0, 0)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the table holds of the keeper's own."""
        return self.page.fd, self.page.duplicate, self.page.timer, *self.reaper.descriptors, self._wakes, self._wake

    def run(self) -> int:
        """Keep; returns the exit code."""
        words = self.page.words
        words[STARTED] = time.monotonic_ns()
        for name in _STANDARD:
            importlib.import_module(name)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard != resource.RLIM_INFINITY:  # its own few descriptors come after all of the broker's
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for number in _WATCHED:
            signal.signal(number, _ignore)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        while True:
            words[GENERATION] += 1
            began = time.monotonic_ns()
            self._start()
            status = self._wait()
            code = os.waitstatus_to_exitcode(status)
            # Who cannot begin says why and leaves; nothing was promised to anybody yet.
            has_begun = words[GENERATION] > 1 and (words[SAID_READY] or words[LENGTH + words[HALF] % 2])
            if code == 0 or (code > 0 and not words[READY] and not has_begun):
                return code
            if code == STEP_ASIDE:
                words[RELOADS] += 1
                words[STEPPED_ASIDE] = 1
            else:
                words[STEPPED_ASIDE] = 0
                self._note_death(code)
                if self._failures == FAILURES:
                    _say("error", f"{FAILURES} brokers in a row could not recover: every active fence completes with ECANCELED")
                    cancel_fences()
                    return 1
                self._pause(time.monotonic_ns() - began)
            self.reaper.end()

    def _start(self) -> None:
        """Clone the next broker.  What the page says of the last one is gone, except for the packet it had in hand."""
        words = self.page.words
        words[READY] = 0
        words[TURN] = 1
        self._killed_for = ""
        # Signals for the broker wait until it has its handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        self.reaper.start()
        pid = clone()
        if pid == 0:
            self._be_broker()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        self._broker = pid
        self.page.arm()
        if self._stop:
            os.kill(pid, self._stop)

    def _be_broker(self) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            end_with_parent(self.page.keeper, signal.SIGTERM)
            for number in (signal.SIGCHLD, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            leave(_broker(self))
        except BaseException:  # noqa: BLE001 - whatever it is, the next broker takes over
            import traceback

            traceback.print_exc()
            leave(70)  # here, while the traceback still holds all that would close its descriptor when it goes

    def _wait(self) -> int:
        """Wait for the end of the broker; returns its wait status."""
        poll = select.poll()
        poll.register(self._wakes, select.POLLIN)
        poll.register(self.page.timer, select.POLLIN)
        self._seen = (0, 0, 0.0)
        while True:
            for fd, _ in poll.poll():
                if fd == self.page.timer:
                    os.read(fd, 8)
                    self._look()
                else:
                    self._hear(os.read(fd, 512))
            if (status := self._bury()) is not None:
                return status
            if self._is_asked and not self._rehearsal and self.page.words[READY]:
                # One at a time, and of a broker that serves; who asks meanwhile may have changed what this one has read already.
                self._is_asked = False
                self._rehearsal = os.posix_spawn(sys.executable, [sys.executable, *sys.orig_argv[1:], "--rehearse"], os.environ)

    def _hear(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop = number
                if self._broker:
                    os.kill(self._broker, number)
            elif number == signal.SIGHUP:
                self._is_asked = True
            elif number == signal.SIGUSR1:
                self.reaper.start()

    def _bury(self) -> int | None:
        """Take what the children tell; returns the broker's status when it has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return None
            if pid == 0:
                return None
            if pid == self._broker and os.WIFSTOPPED(status):
                self._kill(f"it was stopped by {signal.Signals(os.WSTOPSIG(status)).name}")
            elif pid == self._broker:
                self._broker = 0
                return status
            elif pid == self._rehearsal and not os.WIFSTOPPED(status):
                self._rehearsal = 0
                if status == 0 and self._broker:
                    os.kill(self._broker, signal.SIGHUP)
                elif status:
                    _say("error", "the broker goes on as it is: what is installed now does not start with its configuration")
            elif not os.WIFSTOPPED(status):
                self.reaper.bury(pid)

    def _look(self) -> None:
        """See whether the broker is still in the turn that it was in last time."""
        words = self.page.words
        words[ARMED] = 0
        _syscall(3, _MEMBARRIER_GLOBAL, 0, 0)  # it arms the timer unless it sees that it runs: what it stored before that is seen below
        turn = words[TURN]
        if not turn % 2 or not self._broker:
            return
        used = _processor_seconds(self._broker)
        seen, looks, before = self._seen
        if turn != seen:
            self._seen = turn, 1, used
        elif used - before >= LOOK_SECONDS or looks >= LOOKS:
            self._kill("it did not come to the end of a turn")
        else:
            self._seen = turn, looks + 1, before
        self.page.arm()

    def _kill(self, why: str) -> None:
        self._killed_for = why
        os.kill(self._broker, signal.SIGKILL)

    def _note_death(self, code: int) -> None:
        """Say why the broker ended, count, and find out whether one packet is to blame."""
        words = self.page.words
        ended = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
        reason = self._killed_for or ended
        words[RECOVERIES] += 1
        self.page.reason = reason
        self._failures = 0 if words[READY] else self._failures + 1
        _say("warning", f"the broker is replaced: {reason}")
        self._is_own_fault = code > 0 or -code in _FAULTS or "turn" in self._killed_for
        hand = (words[HAND], words[HAND + 1], words[HAND + 2])
        words[CONDEMNED] = 0
        if self._is_own_fault and hand[0] and hand == self._blamed:
            words[CONDEMNED + 1], words[CONDEMNED + 2], words[CONDEMNED] = hand[1], hand[2], hand[0]
        self._blamed = hand if self._is_own_fault else (0, 0, 0)

    def _pause(self, lived: int) -> None:
        """Wait before the next broker if they die too fast; a signal that ends it all ends this too."""
        self._crashes = self._crashes + 1 if self._is_own_fault and lived < SHORT_LIFE_NS else 0
        if self._crashes < 2 and not self._failures:
            return
        least, most = PAUSES
        seconds = min(most, least * 2 ** (self._crashes + self._failures))
        _say("warning", f"the next one begins in {seconds:g} s")
        poll = select.poll()
        poll.register(self._wakes, select.POLLIN)
        until = time.monotonic() + seconds
        while not self._stop and (left := until - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                self._hear(os.read(self._wakes, 512))


def _broker(keeper: Keeper) -> int:
    from fencebrokerd.cli import main as run

    try:
        run(keeper)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _processor_seconds(pid: int) -> float:
    """How much processor time a process has used.  Without a descriptor: in a table that is shared, a broker that recovers would take it for a
    leftover.
    """
    try:
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError:  # it has ended
        return 0.0


def _sleeps(pid: int) -> bool:
    """Whether a process is in a sleep that no signal interrupts.  While there is no broker: this opens a file."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0] == "D"
    except OSError:
        return False


def _ignore(number: int, frame: FrameType | None) -> None:
    """A signal's work is to wake us."""


def stderr_is_journal() -> bool:
    """systemd names the journal's stream in $JOURNAL_STREAM as device:inode."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return device == str(found.st_dev) and inode == str(found.st_ino)


def log_line(level: str, text: str, for_journal: bool) -> str:
    """One line of the log, with its end."""
    if for_journal:
        return f"<{PRIORITIES[level]}>{text}\n"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} fencebrokerd[{os.getpid()}] {level}: {text}\n"


def _say(level: str, text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, log_line(level, f"keeper: {text}", stderr_is_journal()).encode())


def cancel_fences() -> None:
    """Write -ECANCELED into every eventfd of ours that has the form of an active fence: a semaphore, count 0.  It needs no code but this."""
    signal.signal(signal.SIGALRM, _ignore)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)  # a holder may have made one that blocks
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventfd]":
                info = os.open(f"/proc/self/fdinfo/{name}", os.O_RDONLY | os.O_CLOEXEC)
                lines = [line.split() for line in os.read(info, 4096).splitlines()]
                os.close(info)
                # Locks that a holder has put on the file are lines too, of more words, and many of them hide the count: that is its own loss.
                fields = {words[0]: words[1] for words in lines if len(words) == 2}
                if fields.get(b"eventfd-semaphore:", b"1") == b"1" and int(fields.get(b"eventfd-count:", b"1"), 16) == 0:
                    os.write(int(name), _CANCELED.to_bytes(8, "little"))
        except OSError:
            continue  # closed meanwhile, or it blocks: its holder sees to that
    signal.setitimer(signal.ITIMER_REAL, 0)


def make_keeper() -> Keeper:
    """Make one; SystemExit with a line on stderr where there is no room for its memory or its descriptors."""
    try:
        return Keeper()
    except OSError as err:
        size = (JOURNAL_BYTES + OWNERS_BYTES) >> 20
        _say(
            "error",
            f"there is no room for the journal, {size} MiB of address space and of a file in memory: {err.strerror} (ulimit -f, -n, -v)",
        )
        sys.exit(1)


def main() -> None:
    """Keep a broker; or, with --no-keeper and for a rehearsal, be one."""
    hold_standard_streams()
    if serves_others(sys.argv[1:], os.environ):
        hide_memory()
    if {"--no-keeper", "--rehearse"}.isdisjoint(sys.argv[1:]):
        leave(make_keeper().run())
    from fencebrokerd.cli import main as run

    run(None)
