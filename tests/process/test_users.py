"""Several users at one broker: what a mode lets through, what stays hidden, and who is not served.

Becoming another user needs root; elsewhere these tests do not run.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import sys
import textwrap
import time
from collections.abc import Callable

import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Child, Spawn, StartBroker, not_run

OWNER, FRIEND, STRANGER = 4201, 4202, 4203
GROUP = 4300

#: Becomes a user, connects, and carries out what it reads: one expression a line, its result or error on one line.
USER = """
    import errno, os, sys
    import fencebroker as fb
    uid, gid, *groups = map(int, sys.argv[2:])
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    held = {}
    try:
        broker = fb.connect(sys.argv[1])
    except Exception as err:
        print(type(err).__name__, err, flush=True)
        sys.exit(0)
    print("in", flush=True)
    for line in sys.stdin:
        try:
            print(eval(line), flush=True)
        except Exception as err:
            print(type(err).__name__, err, flush=True)
    for thing in held.values():
        thing.close()
    broker.close()
"""


class User:
    """Another user's program."""

    def __init__(self, spawn: Spawn, broker: BrokerProcess, uid: int, gid: int | None = None, *groups: int) -> None:
        self.child: Child = spawn(USER, broker.path, uid, uid if gid is None else gid, *groups)
        self.greeting = self.child.line()

    def __call__(self, expression: str) -> str:
        self.child.send(expression)
        return self.child.line()

    def hold(self, name: str, expression: str) -> str:
        return self(f"held.__setitem__({name!r}, {expression})")


@pytest.fixture
def become(spawn: Spawn, public: BrokerProcess) -> Callable[..., User]:
    return lambda uid, gid=None, *groups: User(spawn, public, uid, gid, *groups)


# Modes


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "groups", "may_wait", "may_signal"),
    [
        (0o600, OWNER, OWNER, (), True, True),
        (0o600, FRIEND, FRIEND, (), False, False),
        (0o600, 0, 0, (), True, True),
        (0o000, OWNER, OWNER, (), False, False),
        (0o000, 0, 0, (), True, True),
        (0o400, OWNER, OWNER, (), True, False),
        (0o200, OWNER, OWNER, (), False, True),
        (0o640, FRIEND, GROUP, (), True, False),
        (0o640, FRIEND, FRIEND, (GROUP,), True, False),
        (0o660, FRIEND, FRIEND, (7, GROUP, 8), True, True),
        (0o660, STRANGER, STRANGER, (), False, False),
        (0o604, STRANGER, STRANGER, (), True, False),
        (0o604, FRIEND, GROUP, (), False, False),  # the group's bits count for the group, as for a file
        (0o666, STRANGER, STRANGER, (), True, True),
        (0o602, STRANGER, STRANGER, (), False, True),
    ],
)
def test_a_mode_is_like_a_files(
    become: Callable[..., User], mode: int, uid: int, gid: int, groups: tuple[int, ...], may_wait: bool, may_signal: bool
) -> None:
    """r may wait, w may signal; for owner, group, others; root passes.  The name is ``user/name`` for others."""
    owner = become(OWNER, GROUP)
    owner.hold("timeline", f"broker.create_timeline('camera0', mode={mode:#o})")
    owner("held['timeline'].advance(3)")
    other = become(uid, gid, *groups)
    other.hold("fence", f"broker.sync_file('{OWNER}/camera0@3')")
    assert other("held['fence'].status()") == ("1" if may_wait else "0")
    opened = other.hold("opened", f"broker.open_timeline('{OWNER}/camera0')")
    if may_signal:
        assert opened == "None"
        assert other("held['opened'].advance(9)") == "None"
        owner.hold("fence", "held['timeline'].export(9)")
        assert owner("held['fence'].wait(10)") == "None"
    elif may_wait:
        assert opened.startswith(f"PermissionError [Errno 13] the mode {mode:04o} of '{OWNER}/camera0' does not let you signal it")
    else:
        assert opened.startswith(f"FileNotFoundError [Errno 2] there is no timeline '{OWNER}/camera0' here (or it is not yours to see)")


def test_missing_and_forbidden_look_the_same(become: Callable[..., User]) -> None:
    """Nobody learns by asking what others have: the same errors, the same placeholders, the same silence."""
    owner, stranger = become(OWNER), become(STRANGER)
    owner.hold("timeline", "broker.create_timeline('secret')")

    def ask(name: str) -> list[str]:
        said = [
            stranger(f"broker.open_timeline('{OWNER}/{name}')"),
            stranger(f"broker._lookup('{OWNER}/{name}')"),
            stranger(f"broker._lookup('{OWNER}/{name}@1')"),
            stranger.hold(name, f"broker.sync_file('{OWNER}/{name}@1')"),
            stranger(f"(lambda i: (i.status, i.fences[0].owner, i.fences[0].driver_name))(broker.info(held[{name!r}]))"),
        ]
        return [line.replace(name, "NAME") for line in said]

    answers = ask("secret"), ask("missing")
    assert answers[0] == answers[1]
    owner("held['timeline'].advance(1)")
    assert stranger("held['secret'].status()") == "0"


def test_a_placeholder_binds_only_where_the_mode_allows(become: Callable[..., User]) -> None:
    """Asked for before the timeline exists: who may wait then is decided when it does."""
    owner, friend, stranger = become(OWNER), become(FRIEND, FRIEND, GROUP), become(STRANGER)
    for user in (friend, stranger):
        user.hold("fence", f"broker.sync_file('{OWNER}/later@1')")
    second = become(OWNER, GROUP)
    second.hold("timeline", "broker.create_timeline('later', mode=0o640)")
    second("held['timeline'].advance(1)")
    assert friend("held['fence'].wait(10)") == "None"
    assert stranger("held['fence'].status()") == "0"
    assert owner("broker._status()['timelines']") == "1"


def test_names_are_per_user(become: Callable[..., User]) -> None:
    """No squatting: ``camera0`` is yours, whatever others call theirs."""
    first, second = become(OWNER), become(FRIEND)
    for user in (first, second):
        assert user.hold("timeline", "broker.create_timeline('camera0')") == "None"
        user.hold("fence", "broker.sync_file('camera0@1')")
    first("held['timeline'].advance(1)")
    assert first("held['fence'].wait(10)") == "None"
    assert second("held['fence'].status()") == "0"


# Inspection


def test_others_see_nothing(become: Callable[..., User], public: BrokerProcess) -> None:
    """One's own objects only, not even counts; root and the broker's own user see all."""
    owner, stranger = become(OWNER), become(STRANGER)
    owner.hold("timeline", "broker.create_timeline('camera0', mode=0o666)")
    owner.hold("fence", "held['timeline'].export(1)")
    for kind in ("timelines", "fences", "sync_files"):
        assert stranger(f"list(broker._listing({kind!r}))") == "[]"
        assert owner(f"len(list(broker._listing({kind!r})))") == "1"
    assert stranger("len(list(broker._listing('sessions')))") == "1"
    assert stranger(
        "{k: v for k, v in broker._status().items() if k in ('timelines', 'fences', 'sync_files', 'sessions', 'active_fences')}"
    ) == ("{'sessions': 1, 'timelines': 0, 'fences': 0, 'sync_files': 0, 'active_fences': 0}")
    for name in (f"{OWNER}/camera0", "camera0", "1:1", "#1"):
        assert stranger(f"broker._lookup({name!r})").startswith("FileNotFoundError [Errno 2] there is no")
    with fb.connect(public.path) as connection:
        assert len(list(connection._listing("timelines"))) == 1
        assert connection._status()["sessions"] == 3


def test_events_of_others_are_not_told(become: Callable[..., User]) -> None:
    """A subscriber hears of its own uid's objects."""
    owner, stranger = become(OWNER), become(STRANGER)
    stranger.hold("events", "broker.events()")
    owner.hold("timeline", "broker.create_timeline('camera0')")
    owner("held['timeline'].advance(1)")
    owner("broker._status()['timelines']")
    stranger.hold("timeline", "broker.create_timeline('mine')")
    assert stranger("next(held['events']).timeline") == "mine"


def test_possession_counts_more_than_modes(become: Callable[..., User], public: BrokerProcess) -> None:
    """A descriptor that was handed over is a right: wait, inspect, merge and import what a mode forbids."""
    with fb.connect(public.path) as connection, connection.create_timeline("secret", mode=0o600) as timeline, timeline.export(5) as fence:
        path = f"{os.path.dirname(public.path)}/hand-over"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            os.chmod(path, 0o666)
            listener.listen()
            stranger = become(STRANGER)
            stranger.hold("sock", "__import__('socket').socket(__import__('socket').AF_UNIX, __import__('socket').SOCK_SEQPACKET)")
            stranger(f"held['sock'].connect({path!r})")
            with listener.accept()[0] as peer:
                fb.send_sync_file(peer, b"here", fence)
                stranger.hold("fence", "fb.recv_sync_file(held['sock'])[1]")
        assert stranger("broker.info(held['fence']).fences[0].obj_name") == "secret"
        assert stranger.hold("private", "broker.import_sync_file(held['fence'])") == "None"
        assert stranger.hold("merged", "broker.merge([held['fence'], held['private']])") == "None"
        timeline.fail(5, errno.EIO)
        for name in ("fence", "private", "merged"):
            said = stranger(f"held[{name!r}].wait(10)")
            assert said.startswith("FenceError secret@5 failed with EIO"), said


# Who is served


def test_the_sockets_mode_decides_first(become: Callable[..., User], start_broker: StartBroker, spawn: Spawn, folder: str) -> None:
    """A socket of mode 0600 lets nobody else connect: PermissionError."""
    os.chmod(folder, 0o755)
    private = start_broker(path=f"{folder}/private")
    assert stat.S_IMODE(os.stat(private.path).st_mode) == 0o600
    said = User(spawn, private, STRANGER).greeting
    assert said.startswith("PermissionError [Errno 13]")


def test_the_overflow_uid_is_refused(become: Callable[..., User], start_broker: StartBroker, spawn: Spawn, folder: str) -> None:
    """uid 65534 stands for everybody who is not mapped: all of them would be one user.  The message says so; it can be allowed."""
    said = become(65534).greeting
    assert said.startswith(
        "PermissionError [Errno 1] the broker sees uid 65534, which stands for every user that is not mapped into its user namespace"
    )
    assert "allow_overflow_uid" in said
    allowed = start_broker("--socket-mode", "0666", path=f"{folder}/allowed", env={"FENCEBROKERD_ALLOW_OVERFLOW_UID": "yes"})
    assert User(spawn, allowed, 65534).greeting == "in"


def test_quotas_are_per_user(spawn: Spawn, start_broker: StartBroker, folder: str) -> None:
    """One user's crowd leaves another's room."""
    os.chmod(folder, 0o755)
    with open(f"{folder}/fencebroker.toml", "w", encoding="ascii") as stream:
        stream.write("[limits]\ntimelines_per_uid = 2\nsessions_per_uid = 2\n")
    broker = start_broker("--config", f"{folder}/fencebroker.toml", "--socket-mode", "0666", path=f"{folder}/broker")
    first, second = User(spawn, broker, OWNER), User(spawn, broker, OWNER)
    for n, user in enumerate((first, second)):
        assert user.hold("timeline", f"broker.create_timeline('t{n}')") == "None"
    assert first("broker.create_timeline('t3')") == "QuotaExceeded [Errno 122] timelines per user: 2 of 2 are in use and 1 more do not fit"
    assert User(spawn, broker, OWNER).greeting == "QuotaExceeded [Errno 122] sessions per user: 2 of 2 are in use and 1 more do not fit"
    other = User(spawn, broker, FRIEND)
    assert other.greeting == "in"
    assert other.hold("timeline", "broker.create_timeline('t0')") == "None"


# Namespaces


def unshare(*arguments: str) -> list[str]:
    command = shutil.which("unshare")
    if command is None:
        not_run("unshare (util-linux) is not installed")
    return [command, *arguments]


ROUND = """
    import sys, fencebroker as fb
    with fb.connect(sys.argv[1]) as broker, broker.create_timeline("inside") as timeline, timeline.export(1) as fence:
        info = broker.info(fence)
        print(info.creator.pid, info.creator.uid, flush=True)
        timeline.advance(1)
        fence.wait(10)
        try:
            broker.create_timeline("inside")
        except FileExistsError as err:
            print(err.strerror)
"""


def test_a_client_in_namespaces_of_its_own(public: BrokerProcess, spawn: Spawn) -> None:
    """``unshare -Upn``: other user, pid and network namespaces; a path to the socket is all it needs."""
    child = spawn([*unshare("-Upn", "--fork", "--kill-child"), sys.executable, "-c", textwrap.dedent(ROUND), public.path])
    first = child.line()
    child.finish()
    assert first.endswith(" 0")  # in the broker's user namespace it is still root's process


def test_a_client_whose_clock_is_another(public: BrokerProcess, spawn: Spawn) -> None:
    """``unshare -T``: its CLOCK_MONOTONIC is eleven days ahead.  An expiry is a duration and ends in time; a time that it says is not believed."""
    code = """
        import sys, time
        import fencebroker as fb
        with fb.connect(sys.argv[1]) as broker, broker.create_timeline("ahead") as timeline, timeline.export(1) as fence:
            timeline.advance(1)
            fence.wait(10)
            print(time.monotonic_ns(), broker.info(fence).fences[0].timestamp_ns, flush=True)
            with broker.sync_file("never@1", expiry=0.05) as late:
                began = time.monotonic()
                try:
                    late.wait(10)
                except fb.FenceError as err:
                    print(err.error, 0.05 <= time.monotonic() - began < 10, flush=True)
    """
    command = [*unshare("-T", "--monotonic", "1000000", "--fork"), sys.executable, "-c", textwrap.dedent(code), public.path]
    child = spawn(command)
    theirs, noted = map(int, child.line().split())
    assert theirs - noted > 900_000 * 10**9
    assert noted <= time.monotonic_ns()
    assert child.line() == f"{errno.ETIME} True"
    child.finish()


def test_a_client_whose_pid_is_not_visible(start_inside: Callable[..., BrokerProcess], spawn: Spawn) -> None:
    """A broker in a pid namespace of its own sees pid 0: everything works, and messages say so."""
    broker = start_inside(unshare("-p", "--fork", "--kill-child"))
    said = spawn(ROUND, broker.path).finish().splitlines()
    assert said[0] == "0 0"
    assert "in use by pid 0" in said[1]
    broker._must_stop_well = False  # unshare passes no signal on
    broker.kill()


def test_a_client_that_is_not_mapped(start_inside: Callable[..., BrokerProcess], spawn: Spawn, folder: str) -> None:
    """A broker in a user namespace that maps root alone: everybody else looks like 65534 and is refused, with the reason."""
    os.chmod(folder, 0o755)
    broker = start_inside(unshare("-U", "--map-root-user"), "--socket-mode", "0666")
    assert User(spawn, broker, STRANGER).greeting.startswith("PermissionError [Errno 1] the broker sees uid 65534")
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        timeline.advance(1)
        fence.wait(LIMIT)
