"""``fencebroker.libsync`` as a process lives with it: threads, forks, descriptors that are closed without a word."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING

import psutil
import pytest

import fencebroker as fb
from fencebroker import libsync
from fencebroker.errors import BrokerUnavailable
from fencebroker.finding import close_shared, default_connection
from tests.helpers import BrokerProcess, eventfd_id
from tests.process.libsync_support import Own, own

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers import Spawn, StartBroker

__all__ = ["own"]

#: Rounds of the churn; a million take some minutes.
CHURN = int(os.environ.get("FENCEBROKER_CHURN", "20000"))


def status(fd: int) -> int:
    return libsync.sync_file_info(fd).status


def test_a_bare_close_of_a_timeline_is_seen_at_once(own: Own) -> None:
    for _ in range(3000):
        timeline = libsync.sw_sync_timeline_create()
        fence = libsync.sw_sync_fence_create(timeline, "", 1)
        os.close(timeline)
        libsync.sync_wait(fence, 0)
        assert status(fence) == -errno.ENOENT
        os.close(fence)


def test_threads_share_one_connection(own: Own, module_broker: BrokerProcess) -> None:
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            start.wait()
            for _ in range(50):
                timeline = libsync.sw_sync_timeline_create()
                fence = libsync.sw_sync_fence_create(timeline, "", 1)
                libsync.sw_sync_timeline_inc(timeline, 1)
                libsync.sync_wait(fence, 10_000)
                os.close(timeline)
                os.close(fence)
        except BaseException as err:  # noqa: BLE001 - the main thread looks at it
            failures.append(err)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with fb.connect(module_broker.path) as looker:
        mine = [row for row in looker._listing("sessions") if row[1] == os.getpid()]
    assert len(mine) == 2  # the threads', and the one that looks


FAMILY = """
    import os, socket, sys
    import fencebroker as fb
    from fencebroker import fds, libsync
    other = socket.socket(fileno=int(sys.argv[1]))
    timeline = libsync.sw_sync_timeline_create()
    fences = [libsync.sw_sync_fence_create(timeline, "", value) for value in (1, 2, 3, 9)]
    holder = libsync._holder
    fds.send_packet(other, b"t", [timeline])
    child = os.fork()
    if child == 0:
        assert libsync._holder != holder
        mine = libsync.sw_sync_fence_create(timeline, "", 1)  # a connection of its own mints here
        libsync.sw_sync_timeline_inc(timeline, 1)
        libsync.sync_wait(mine, 10_000)
        with fb.connect() as looker:
            assert os.getpid() in {row[1] for row in looker._listing("sessions")}
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    libsync.sync_wait(fences[0], 0)
    print(*(libsync.sync_file_info(fence).status for fence in fences), flush=True)
    sys.stdin.readline()
    libsync.sync_wait(fences[1], 10_000)
    libsync.sw_sync_timeline_inc(timeline, 1)
    print(*(libsync.sync_file_info(fence).status for fence in fences), flush=True)
    fds.send_packet(other, b"f", [fences[3]])
    assert os.fork() or sys.stdin.readline()  # a child that keeps its copy of the timeline
"""


def test_a_forked_child_and_a_receiver_both_advance(own: Own, module_broker: BrokerProcess, spawn: Spawn) -> None:
    from fencebroker.fds import recv_packet

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        family = spawn(FAMILY, theirs.fileno(), pass_fds=[theirs.fileno()], env=module_broker.env)
        _, (received,) = recv_packet(ours)
        timeline = own(received.detach())
        assert family.line() == "1 0 0 0"
        libsync.sw_sync_timeline_inc(timeline, 1)
        family.send("go")
        assert family.line() == "1 1 1 0"
        _, (received,) = recv_packet(ours)
    last = own(received.detach())
    own.close(timeline)
    assert family.wait() == 0
    # The parent is dead; its forked child holds a copy of the timeline by inheritance, as in the kernel.
    with pytest.raises(OSError, match=r"\[Errno 62\]"):
        libsync.sync_wait(last, 0)
    family.kill()  # and whatever it started
    libsync.sync_wait(last, 10_000)
    assert status(last) == -errno.ENOENT


def test_the_broker_may_be_found_anew(start_broker: StartBroker, own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start_broker()
    monkeypatch.setenv("FENCEBROKER_SOCKET", first.path)
    timeline = own.timeline()
    fence = own.fence(timeline, 1)
    first.stop()
    libsync.sync_wait(fence, -1)  # it completed what was active when it left
    for call in (lambda: libsync.sync_file_info(fence), lambda: libsync.sw_sync_timeline_inc(timeline, 1), libsync.sw_sync_timeline_create):
        with pytest.raises(BrokerUnavailable) as caught:
            call()
        assert caught.value.errno == errno.ENOTCONN
    monkeypatch.setenv("FENCEBROKER_SOCKET", start_broker().path)
    info = libsync.sync_file_info(fence)  # of another broker: its status travels with it
    assert (info.status, info.detached) == (-errno.ECANCELED, True)
    assert status(own.fence(own.timeline(), 1)) == 0
    with pytest.raises(OSError, match=r"\[Errno 25\]"):
        libsync.sw_sync_timeline_inc(timeline, 1)


def test_the_minting_right_comes_back_with_another_copy(own: Own) -> None:
    from fencebroker import wire

    timeline = own.timeline()
    context = libsync.sync_file_info(own.fence(timeline, 1)).context
    default_connection().tell(wire.FORGET_TIMELINE, context)
    assert status(own.fence(timeline, 2)) == 0


# -- descriptors that come and go without a word


@pytest.fixture
def forgetful(start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Own) -> BrokerProcess:
    """A broker that keeps next to nothing of what has signalled."""
    config = tmp_path / "broker.toml"
    config.write_text("[limits]\nretained_records = 1\n")
    broker = start_broker("--config", str(config))
    monkeypatch.setenv("FENCEBROKER_SOCKET", broker.path)
    return broker


def forget(timeline: int, value: int) -> None:
    """Give the broker newer things to remember: so many that the library's notices have arrived too."""
    libsync.sw_sync_timeline_inc(timeline, value)
    for _ in range(80):
        os.close(libsync.sw_sync_fence_create(timeline, "", 0))


def test_a_forgotten_descriptor_that_comes_back_is_detached(forgetful: BrokerProcess, own: Own) -> None:
    work, broken, filler = own.timeline(), own(libsync.sw_sync_timeline_create()), own.timeline()
    done, failed = own.fence(work, 1), own.fence(broken, 1)
    pending = own.fence(own.timeline(), 1)
    libsync.sw_sync_timeline_inc(work, 1)
    assert libsync.sync_file_info(done).status == 1  # the broker reads that ring now, so this one's record is the older of the two
    own.close(broken)
    libsync.sync_wait(failed, 0)
    assert not libsync.sync_file_info(failed).detached
    forget(filler, 1)
    for fd, expected in ((done, 1), (failed, -errno.ENOENT)):
        info = libsync.sync_file_info(fd)
        assert info.detached
        assert (info.status, info.num_fences, info.fences[0].status) == (expected, 1, expected)
        assert (info.fences[0].driver_name, info.fences[0].obj_name) == ("detached-driver", "signaled-timeline")
        assert info.name == "detached-driver-signaled-timeline0-0"[:31]
        libsync.sync_wait(fd, 0)
        libsync.sync_set_deadline(fd, 1)
        with pytest.raises(OSError, match=r"\[Errno 22\]"):
            libsync.sw_sync_get_deadline(fd)
    assert status(own.merge(done, failed)) == -errno.ENOENT
    assert [fence.status for fence in libsync.sync_file_info(own.merge(failed, pending)).fences] == [-errno.ENOENT, 0]
    assert status(own.merge(done, pending)) == 0


@pytest.mark.parametrize("known", [True, False], ids=["known by number", "shown"])
def test_a_reused_eventfd_id_is_never_mistaken(forgetful: BrokerProcess, own: Own, known: bool) -> None:
    timeline, filler = own.timeline(), own.timeline()
    if not known:
        default_connection().known.close()
    met: Counter[str] = Counter()
    used: set[int] = set()
    for value in range(1, 200):
        fence = own.fence(timeline, value)
        used.add(eventfd_id(fence))
        libsync.sw_sync_timeline_inc(timeline, 1)
        assert libsync.sync_file_info(fence).seqno == value
        forget(filler, 1)
        assert libsync.sync_file_info(fence).detached
        own.close(fence)  # the last copy anywhere: the kernel gives its id to whoever comes next
        stranger = own(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE))
        if eventfd_id(stranger) in used:
            met["stranger"] += 1
        with pytest.raises(OSError, match=r"\[Errno 25\]"):
            libsync.sync_file_info(stranger)
        own.close(stranger)
        another = own.fence(timeline, value + 1000)
        if eventfd_id(another) in used:
            met["ours"] += 1
        info = libsync.sync_file_info(another)
        assert (info.status, info.seqno, info.detached) == (0, value + 1000, False)
        own.close(another)
    # Otherwise nothing was shown.  What is known by its number is held a little longer, so its id is not free at once.
    assert met["stranger"] > (0 if known else 20), met
    assert met["ours"] > 20, met


def test_a_number_says_nothing_by_itself(own: Own) -> None:
    """Each file that stands behind one number in turn is taken for what it is."""
    timeline = own.timeline()
    first, second = own.fence(timeline, 1), own.fence(timeline, 2)
    kept = own(os.dup(first))
    assert libsync.sync_file_info(first).seqno == 1
    os.dup2(second, first)
    assert libsync.sync_file_info(first).seqno == 2
    own.close(first)
    assert own.fence(timeline, 3) == first
    os.dup2(kept, first)
    assert libsync.sync_file_info(first).seqno == 1
    merged = own.merge(first, second)
    assert libsync.sync_file_info(merged).seqno == 2
    os.dup2(timeline, first)
    for call in (lambda: libsync.sync_file_info(first), lambda: libsync.sync_merge("", first, second)):
        with pytest.raises(OSError, match=r"\[Errno 25\]"):
            call()
    with pytest.raises(OSError, match=r"\[Errno 2\]"):
        libsync.sync_merge("", second, first)


def test_what_somebody_writes_is_noted_although_the_number_is_known(own: Own) -> None:
    timeline = own.timeline()
    fence = own.fence(timeline, 1)
    assert not libsync.sync_file_info(fence).tampered
    os.eventfd_write(fence, 7)
    assert libsync.sync_file_info(fence).tampered


def test_a_forked_child_shows_what_its_parent_names(own: Own) -> None:
    timeline = own.timeline()
    fence = own.fence(timeline, 1)
    before = libsync.sync_file_info(fence)
    child = os.fork()
    if child == 0:
        ok = libsync.sync_file_info(fence) == before
        close_shared()
        os._exit(not ok)
    assert os.waitpid(child, 0)[1] == 0
    assert libsync.sync_file_info(fence) == before


class Footprint:
    """What a broker has in use."""

    def __init__(self, broker: BrokerProcess, looker: fb.Broker) -> None:
        counts = looker._status()
        self.counts = {name: counts[name] for name in ("sessions", "timelines", "fences", "sync_files", "active_fences", "descriptors")}
        self.open = Counter(os.readlink(f"/proc/{broker.pid}/fd/{fd}").partition(":")[0] for fd in os.listdir(f"/proc/{broker.pid}/fd"))
        self.memory = psutil.Process(broker.pid).memory_info().rss


@pytest.mark.timeout(60 + CHURN // 500)
def test_churn_leaves_the_broker_where_it_began(forgetful: BrokerProcess, own: Own) -> None:
    def churn(rounds: int) -> None:
        line = libsync.sw_sync_timeline_create()
        for number in range(1, rounds + 1):
            fence = libsync.sw_sync_fence_create(line, "", number % 100 + 1)
            if number % 100 == 99:
                os.close(line)  # with a fence pending
                libsync.sync_wait(fence, -1)
                line = libsync.sw_sync_timeline_create()
            else:
                libsync.sw_sync_timeline_inc(line, 1)
            os.close(fence)
        os.close(line)

    with fb.connect(forgetful.path) as looker:
        churn(2000)
        forget(own.timeline(), 1)
        before = Footprint(forgetful, looker)
        churn(CHURN)
        forget(own.timeline(), 1)
        after = Footprint(forgetful, looker)
    before.counts["timelines"] += 1  # the second call of forget() has one of its own
    before.counts["descriptors"] += 1
    before.open["socket"] += 1
    assert after.counts == before.counts
    assert after.open == before.open
    assert after.memory < before.memory + 2**21


def test_what_a_default_broker_keeps_is_bounded(own: Own, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = start_broker()
    monkeypatch.setenv("FENCEBROKER_SOCKET", broker.path)
    timeline = own.timeline()
    for _ in range(3000):
        os.close(libsync.sw_sync_fence_create(timeline, "", 0))
    with fb.connect(broker.path) as looker:
        counts = looker._status()
    assert 900 < counts["sync_files"] <= 1024 + 64
    assert counts["active_fences"] == 0
