"""``doctor``: what is wrong here, and what cures it."""

from __future__ import annotations

import os
import re
import resource
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from fencebroker import Broker, BrokerUnavailable, __version__, places
from fencebroker.cli import names
from fencebroker.cli.command import Failure, Invocation, Verb, answer_within, asks_broker, wants_json
from fencebroker.cli.probes import PROBES, Probe
from fencebroker.cli.render import Cell, Column, Table

__all__ = ["doctor"]

OK, NOTE, BAD = "ok", "note", "bad"
_STYLES: Final = {OK: "green", NOTE: "yellow", BAD: "bold red"}
_CAP_SYS_PTRACE: Final = 19
_UCRED: Final = struct.Struct("3i")
#: A broker that lives answers in well under a second.
ANSWER_SECONDS: Final = 3.0
#: When so little of a limit is left, the next burst meets it.
NEARLY: Final = 0.9

EXAMPLE: Final = """\
$ fencectl doctor broker
ok  broker  pid 4187, fencebroker 0.1.0, user ada, listens at /run/user/1000/fencebroker/broker.sock
"""


class Finding(NamedTuple):
    """What one check found: ``ok``, ``note`` (something works less well), or ``bad``; the last two with what cures it."""

    check: str
    state: str
    found: str
    cure: str | None = None


class Patient:
    """The broker, as far as it answers, and how it was found."""

    def __init__(self, invocation: Invocation) -> None:
        self.named = invocation.socket or os.environ.get("FENCEBROKER_SOCKET")
        self.broker: Broker | None = None
        self.error: Exception | None = None
        self.status: dict[str, Any] = {}
        self.peer_pid = 0
        try:
            self.broker = invocation.connect(ANSWER_SECONDS)
            with answer_within(ANSWER_SECONDS):
                self.status = self.broker._status()
            sock = self.broker._connection._sock
            assert sock is not None
            self.peer_pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        except (Failure, OSError) as err:
            self.error = err

    @property
    def pid(self) -> int:
        """The broker's process as we would call it; 0 when it is in another pid namespace, or does not answer."""
        pid = int(self.status.get("pid", 0))
        # Whoever made the listening socket is a service manager's pid, or the broker's own.
        return pid if pid and _is_broker(pid) else 0

    def close(self) -> None:
        """End the conversation."""
        if self.broker is not None:
            self.broker.close()


def _is_broker(pid: int) -> bool:
    try:
        return b"fencebrokerd" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


# -- checks


def _broker(patient: Patient) -> Iterator[Finding]:
    status = patient.status
    if patient.error is None and patient.broker is not None:
        where = patient.broker._connection.path
        who = f"pid {status['pid']}, fencebroker {status['version']}, user {names.user(status['uid'])}, listens at {where}"
        if status["version"] == __version__:
            yield Finding("broker", OK, who)
        else:
            cure = "fencectl restart --user, or restart the service: systemctl restart fencebroker"
            yield Finding("broker", NOTE, f"{who}; fencectl is {__version__}", cure)
        return
    yield Finding("broker", BAD, str(patient.error), _cure_for(patient))


def _cure_for(patient: Patient) -> str:
    text = str(patient.error)
    if not isinstance(patient.error, BrokerUnavailable):
        return "be a member of the group that the socket belongs to (usermod -aG fencebroker USER), and of allow_users or allow_groups"
    if "did not answer" in text:
        return "it is stopped or stuck: continue it (kill -CONT) or restart it"
    if "version" in text:
        return "restart the older of the two: fencectl restart --user, or systemctl restart fencebroker"
    if patient.named:
        return "start a broker there, or leave --socket and $FENCEBROKER_SOCKET out to find the one that runs"
    return "fencectl start --user, or have the library start one (autostart), or systemctl start fencebroker"


def _limits(patient: Patient) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) - 1
    own = f"your programs: {_number(soft)} descriptors, {_number(hard)} if they ask for it; {used} in use here"
    if soft != resource.RLIM_INFINITY and soft < 4096 and soft != hard:
        yield Finding("limits", NOTE, own, f"a program that holds thousands of fences needs more: ulimit -n {_number(hard)}")
    else:
        yield Finding("limits", OK, own)
    if not patient.status:
        return
    limit, reserve = patient.status["descriptor_limit"], patient.status["descriptor_reserve"]
    text = f"the broker: {limit} descriptors, {reserve} of them kept for accepting and inspecting"
    held = patient.status.get("descriptors")
    if patient.pid:
        found = _limits_of(patient.pid)
        if found:
            text += f"; soft limit {found[0]}, hard {found[1]}"
        held = _count_descriptors(patient.pid) or held
    cure = "raise it: LimitNOFILE= in the unit, or ulimit -Hn before fencectl restart --user; fencectl leaks shows what is held in vain"
    if held is None:
        yield Finding("limits", OK, f"{text}; how many are in use only its user and root may see")
    elif held >= NEARLY * (limit - reserve):
        yield Finding("limits", BAD, f"{text}; {held} in use", cure)
    else:
        yield Finding("limits", OK, f"{text}; {held} in use")


def _number(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def _limits_of(pid: int) -> tuple[str, str] | None:
    try:
        found = re.search(r"^Max open files\s+(\S+)\s+(\S+)", Path(f"/proc/{pid}/limits").read_text("ascii"), re.MULTILINE)
    except OSError:
        return None
    return (found[1], found[2]) if found else None


def _count_descriptors(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def _kernel(_: Patient) -> Iterator[Finding]:
    return of_probes(PROBES)


def of_probes(probes: Sequence[Probe]) -> Iterator[Finding]:
    """Try features of the kernel out."""
    missing = 0
    for probe in probes:
        try:
            works = probe.works()
        except OSError:
            works = False
        if not works:
            missing += 1
            cure = f"Linux {probe.since} or newer" if probe.since else "a newer Linux"
            cure += "; if this one is new enough, a sandbox (seccomp) keeps it away"
            yield Finding("kernel", BAD if probe.is_needed else NOTE, f"{probe.name} does not work: {probe.purpose}", cure)
    if not missing:
        yield Finding("kernel", OK, f"Linux {os.uname().release} has all that is used: {', '.join(probe.name for probe in probes)}")


def _access(patient: Patient) -> Iterator[Finding]:
    try:
        folder = places.runtime_dir()
    except OSError as err:
        text = str(err.strerror or err) if err.filename is None else f"{err.filename}: {err.strerror}"
        yield Finding("access", BAD, text, "set XDG_RUNTIME_DIR to a folder of yours with mode 0700, or unset it")
    else:
        yield Finding("access", OK, f"{folder} is yours, for a broker of your own")
    if patient.status:
        if os.getuid() in (0, patient.status["uid"]):
            yield Finding("access", OK, "you see everybody's timelines and fences")
        else:
            cure = "to see others' too, ask as root: sudo fencectl ..."
            yield Finding("access", OK, f"you see what belongs to {names.user(os.getuid())}", cure)
    if os.getuid() and not os.path.exists("/proc/1/stat"):
        cure = "mount /proc without hidepid, or be in the group of its gid= option"
        yield Finding("access", NOTE, "other users' processes are hidden (hidepid): nothing tells whether they hold or wait", cure)


def _namespaces(patient: Patient) -> Iterator[Finding]:
    if not patient.status:
        return
    if not patient.pid:
        text = f"the broker is pid {patient.status['pid']} in another pid namespace: it and fencectl call processes by different numbers"
        yield Finding("namespaces", NOTE, text, "ask from where the broker runs, or share the pid namespace (docs/containers.md)")
        return
    different = []
    for name in ("pid", "user", "mnt", "net", "ipc"):
        try:
            if os.readlink(f"/proc/{patient.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
                different.append(name)
        except OSError:
            yield Finding("namespaces", OK, "the broker's pid is the same for you; its other namespaces only its user and root may see")
            return
    if {"pid", "user"} & set(different):
        text = f"the broker has other namespaces ({', '.join(different)}): pids and users have different numbers there"
        yield Finding("namespaces", NOTE, text, "ask from where the broker runs (docs/containers.md)")
    elif different:
        yield Finding("namespaces", OK, f"pids and users are the broker's; other namespaces differ: {', '.join(different)}")
    else:
        yield Finding("namespaces", OK, "the broker's are yours")


def _ptrace(_: Patient) -> Iterator[Finding]:
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text("ascii"))
    except (OSError, ValueError):
        scope = None
    yield of_scope(scope, _may_trace())


def of_scope(scope: int | None, may_trace: bool) -> Finding:
    """What Yama's ptrace scope lets see; None: there is no Yama here.  ``may_trace``: with CAP_SYS_PTRACE."""
    text = "there is no Yama here" if scope is None else f"Yama's ptrace scope is {scope}"
    if scope is not None and (scope >= 3 or (scope and not may_trace)):
        lost = '"holders" and "why" say who holds a fence, but not who waits in poll or read'
        cure = "sysctl kernel.yama.ptrace_scope at the next boot" if scope >= 3 else "ask as root, or sysctl kernel.yama.ptrace_scope=0"
        return Finding("ptrace", NOTE, f"{text}: {lost}", cure)
    return Finding("ptrace", OK, f"{text}, and you may look into {'every process' if may_trace else 'your own processes'}")


def _may_trace() -> bool:
    status = Path("/proc/self/status").read_text("ascii", errors="replace")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> _CAP_SYS_PTRACE & 1)


CHECKS: Final[dict[str, Callable[[Patient], Iterator[Finding]]]] = {
    "broker": _broker,
    "limits": _limits,
    "kernel": _kernel,
    "access": _access,
    "namespaces": _namespaces,
    "ptrace": _ptrace,
}


@click.command(cls=Verb, example=EXAMPLE, short_help="What is wrong here, and what cures it.")
@click.argument("checks", nargs=-1, type=click.Choice(tuple(CHECKS)), metavar="[broker|limits|kernel|access|namespaces|ptrace]...")
@asks_broker
@wants_json
@click.pass_obj
def doctor(invocation: Invocation, checks: Sequence[str]) -> None:
    """Check what fences depend on; without an argument, everything.

    Is a broker reachable, and of this version (broker)? How many descriptors are left, for it and for you (limits)? Does the kernel have
    what is used; each feature is tried out (kernel). What may you see (access)? Do you and the broker call processes and users by the same
    numbers (namespaces)? May you look into the processes that wait (ptrace)? What is not well is said with its cure. Exit code 4 without a
    broker, 1 if something else is bad.
    """
    patient = Patient(invocation)
    try:
        findings = [finding for name in CHECKS if not checks or name in checks for finding in CHECKS[name](patient)]
    finally:
        patient.close()
    bad = [finding for finding in findings if finding.state == BAD]
    invocation.output.json({"reachable": not patient.error, "findings": [finding._asdict() for finding in findings]})
    rows: list[Sequence[str | Cell]] = []
    for finding in findings:
        rows.append((Cell(finding.state, _STYLES[finding.state]), finding.check, finding.found))
        if finding.cure:
            rows.append(("", "", Cell(f"cure: {finding.cure}", "bold")))
    invocation.output.tables(Table("", (Column(""), Column(""), Column("", shrinks=True)), rows, header=False, folds=True))
    if patient.error is not None:
        invocation.code = 4
    elif bad:
        invocation.code = 1
