"""Descriptors and records: import, release, what is kept after the signal and for how long, tampering, poisoning, failures."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from fencebroker import wire
from fencebroker.errors import Refusal
from fencebrokerd.core import effects as fx
from fencebrokerd.core.account import Account, Charge, Slot
from tests.core.world import ALICE, BOB, World, active, limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.core.world import Client, Line, MakeWorld


@pytest.fixture
def client(world: World) -> Client:
    return world.connect(ALICE)


@pytest.fixture
def line(client: Client) -> Line:
    return client.create("camera0")


# -- import


def test_an_import_is_another_descriptor_of_the_same_fence(world: World, client: Client, line: Line) -> None:
    handle = client.export(line, 1)
    by_handle, by_descriptor = client.import_(handle, name="mine"), world.connect(BOB).import_(world.reference(handle))
    assert len({handle, by_handle, by_descriptor}) == 3
    assert world.fence(by_handle) is world.fence(by_descriptor) is world.fence(handle)
    assert client.info(by_handle).name == "mine"
    world.advance(line, 1)
    assert {world.eventfds[h] for h in (handle, by_handle, by_descriptor)} == {1}


def test_an_import_of_a_signalled_one_carries_its_status(world: World, client: Client, line: Line) -> None:
    handle = client.export(line, 1)
    world.fail(line, 1, errno.EIO)
    assert world.eventfds[client.import_(handle)] == -errno.EIO


@pytest.mark.parametrize("status", [1, -1, -errno.EIO, -4095])
def test_a_forgotten_one_is_detached_status_right_timestamp_zero(world: World, client: Client, status: int) -> None:
    handle = client.import_(fx.DetachedFence(status))
    assert world.eventfds[handle] == status
    assert world.fence(handle).timestamp == 0
    assert client.info(handle).fences[0][:4] == ["signaled-timeline", "detached-driver", status, 0]
    info = client.info(fx.DetachedFence(status))
    assert (info.status, info.timestamp, info.detached, info.n) == (status, 0, True, 1)


@pytest.mark.parametrize("reference", [fx.Foreign("a pipe"), fx.KnownTimeline(1)], ids=["foreign", "timeline"])
@pytest.mark.parametrize("op", ["import", "info", "set_deadline"])
def test_what_is_none_of_ours_is_einval(world: World, client: Client, reference: fx.Reference, op: str) -> None:
    before = len(world.events)
    asks: dict[str, Callable[[], object]] = {
        "import": lambda: client.import_(reference),
        "info": lambda: client.info(reference),
        "set_deadline": lambda: client.set_deadline(reference, 1),
    }
    with pytest.raises(Refusal, match="fd must be a sync_file of this broker, not a ") as refused:
        asks[op]()
    assert (refused.value.error, refused.value.detail) == (errno.EINVAL, ("not a sync_file",))
    assert len(world.events) == before


# -- names


def test_the_automatic_name_is_the_kernels_cut_to_31_bytes(world: World, client: Client) -> None:
    line = client.create("camera0", driver="vgem")
    handle = client.export(line, 7)
    assert client.info(handle).name == f"vgem-camera0{line.context}-7"
    long = client.create("ä" * 100)
    assert client.info(client.export(long, 1)).name == "fencebroker-" + "ä" * 9, "31 bytes would cut a letter in two"


def test_an_unnamed_timeline_is_called_by_its_creators_command(world: World) -> None:
    client = world.connect(comm="cat")
    line = client.create(driver="sw_sync")
    assert client.info(client.export(line, 7)).name == f"sw_sync-cat{line.context}-7"


def test_a_name_of_31_bytes_is_kept_and_survives_the_signal(world: World, client: Client, line: Line) -> None:
    handle = client.export(line, 1, name="n" * 31)
    world.advance(line, 1)
    info = client.info(handle)
    assert (info.name, info.fences[0][0]) == ("n" * 31, "camera0")


# -- release


def test_an_unexposed_one_goes_at_once_and_an_active_fence_with_the_last(world: World, client: Client, line: Line) -> None:
    one, two = client.export(line, 1), client.export(line, 1)
    client.release(one)
    assert one not in world.eventfds
    assert active(world) == 1
    client.release(two)
    assert active(world) == 0
    assert not world.eventfds


def test_an_exposed_one_stays_until_its_fence_signals(world: World, client: Client, line: Line) -> None:
    handle = client.export(line, 1)
    client.release(handle, exposed=True)
    assert world.eventfds == {handle: 0}
    assert client.info(world.reference(handle)).status == 0
    world.advance(line, 1)
    assert world.eventfds == {handle: 1}


def test_who_asked_for_one_may_name_it_as_long_as_it_is_on_record(make_world: MakeWorld) -> None:
    world = make_world(limits(retained_records=0))
    client, other = world.connect(), world.connect()
    line = client.create()
    handle = client.export(line, 1)
    client.release(handle, exposed=True)
    assert client.info(handle).status == 0
    assert client.info(client.merge(handle, fx.DetachedFence(1))).seqno == 1
    refusals = []
    with pytest.raises(Refusal) as refused:
        other.info(handle)
    refusals.append(refused.value.error)
    world.advance(line, 1)
    client.release(*client_handles(world))
    with pytest.raises(Refusal) as refused:
        client.info(handle)
    refusals.append(refused.value.error)
    assert refusals == [errno.EBADF] * 2, "not somebody else; not when it is forgotten"


def client_handles(world: World) -> list[int]:
    """Every handle that is open."""
    return [handle for handle, sync_file in world.state.sync_files.items() if sync_file.session is not None]


def test_what_a_request_names_does_not_give_way_to_it(make_world: MakeWorld) -> None:
    """Both are signalled and given back, and only one more fits: the one that is not named gives way."""
    world = make_world(limits(descriptors=64 + 2 + 1 + 2 + 8, sync_files_share=1.0))
    client = world.connect()
    line = client.create()
    handles = client.export_many(line, range(1, 11))
    client.release(*handles, exposed=True)
    world.advance(line, 10)
    client.import_(handles[0])
    assert handles[0] in world.eventfds
    assert handles[1] not in world.eventfds


def test_unknown_and_doubled_handles_are_passed_over(world: World, client: Client, line: Line) -> None:
    handle, other = client.export(line, 1), client.export(line, 2)
    stranger = world.connect(ALICE)
    stranger.release(handle, other)
    stranger.release(handle, exposed=True)
    assert world.eventfds.keys() == {handle, other}
    client.ask(wire.RELEASE, [handle, handle, 12345], [handle, other, other, 12345])
    assert world.eventfds.keys() == {other}


def test_a_session_that_ends_exposes_nothing_and_closes_nothing_active(world: World, client: Client, line: Line) -> None:
    handle = client.export(line, 1)
    client.disconnect()
    assert world.eventfds == {handle: 0}
    world.advance(line, 1)
    assert world.eventfds == {handle: 1}


# -- retention


def keep(make_world: MakeWorld, n: int) -> World:
    return make_world(limits(retained_records=n))


def test_exactly_the_newest_are_kept(make_world: MakeWorld) -> None:
    world = keep(make_world, 5)
    client = world.connect()
    line = client.create()
    handles = [client.export(line, seqno) for seqno in range(1, 9)]
    client.release(*handles, exposed=True)
    assert len(world.eventfds) == 8, "active ones are no records"
    world.advance(line, 8)
    assert list(world.eventfds) == handles[3:]
    assert len(world.state.fences) == 5


def test_those_with_an_open_handle_are_kept_beside(make_world: MakeWorld) -> None:
    world = keep(make_world, 2)
    client = world.connect()
    line = client.create()
    handles = [client.export(line, seqno) for seqno in range(1, 9)]
    world.advance(line, 8)
    assert list(world.eventfds) == handles
    client.release(*handles[:4], exposed=True)
    assert list(world.eventfds) == handles[2:]
    client.disconnect()
    assert list(world.eventfds) == handles[6:]


def test_importing_a_signalled_one_again_and_again_keeps_a_bounded_number(make_world: MakeWorld) -> None:
    world = keep(make_world, 10)
    client = world.connect()
    line = client.create()
    handle = client.export(line, 1)
    world.advance(line, 1)
    for _ in range(100):
        client.release(client.import_(handle), exposed=True)
    assert len(world.eventfds) == 11
    assert handle in world.eventfds


def test_one_fence_exported_often_keeps_a_bounded_number_after_the_signal(make_world: MakeWorld) -> None:
    world = keep(make_world, 10)
    client = world.connect()
    line = client.create("camera0")
    handles = [client.export(line, 1) for _ in range(50)] + [client.sync_file("camera0@1") for _ in range(50)]
    client.release(*handles, exposed=True)
    assert len(world.eventfds) == 100
    world.advance(line, 1)
    assert list(world.eventfds) == handles[-10:]


def test_what_another_user_gives_back_is_bounded_too(make_world: MakeWorld) -> None:
    """The fences were Alice's wish first, Bob holds the last handles, and Alice does nothing any more."""
    world = keep(make_world, 10)
    alice, bob = world.connect(ALICE), world.connect(BOB)
    line = alice.create("camera0", mode=0o644)
    for seqno in range(1, 101):
        alice.release(alice.export(line, seqno), exposed=True)
    handles = [bob.sync_file(f"{ALICE}/camera0@{seqno}") for seqno in range(1, 101)]
    world.advance(line, 100)
    alice.disconnect()
    bob.release(*handles[:50], exposed=True)
    bob.disconnect()
    assert len(world.eventfds) == 20
    assert len(world.state.fences) <= 20


def test_no_record_at_all(make_world: MakeWorld) -> None:
    world = keep(make_world, 0)
    client = world.connect()
    line = client.create()
    client.release(client.export(line, 1), exposed=True)
    world.advance(line, 1)
    assert not world.eventfds
    assert not world.state.fences
    handle = client.export(line, 1)
    assert world.eventfds[handle] == 1
    client.release(handle)
    assert not world.state.fences


def test_refused_merges_of_forgotten_ones_leave_nothing(world: World, client: Client) -> None:
    for _ in range(100):
        with pytest.raises(Refusal):
            client.merge(*[fx.DetachedFence(1)] * 253, 999)
    assert not world.state.fences


def test_merges_of_forgotten_ones_leave_one_record(world: World, client: Client) -> None:
    handle = client.merge(*[fx.DetachedFence(1)] * 253)
    assert len(world.state.fences) == 1
    client.release(handle)


# -- what goes wrong outside


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM])
def test_the_kernel_refusing_an_eventfd_leaves_nothing_active(world: World, client: Client, line: Line, error: int) -> None:
    world.refuse_eventfds = error
    for ask in (
        lambda: client.export_many(line, [1, 2, 3]),
        lambda: client.sync_file("camera0@9", expiry=100),
        lambda: client.sync_file("nobody@9"),
        lambda: client.import_(fx.DetachedFence(1)),
    ):
        with pytest.raises(Refusal, match="the kernel refused another descriptor for sync_files") as refused:
            ask()
        assert refused.value.error == (errno.ENOMEM if error == errno.EPERM else error)
    world.refuse_eventfds = 0
    assert not world.state.sync_files
    assert active(world) == 0
    handle = client.export(line, 1)
    world.advance(line, 1)
    assert world.eventfds[handle] == 1


def test_an_answer_that_could_not_be_sent_is_taken_back(world: World, client: Client, line: Line) -> None:
    world.refuse_sends = errno.ETOOMANYREFS
    with pytest.raises(Refusal, match="descriptors in flight") as refused:
        client.export_many(line, [1, 2])
    assert refused.value.error == errno.ETOOMANYREFS
    assert not world.eventfds
    assert active(world) == 0


def test_tampering_is_seen_once_and_said(world: World, client: Client, line: Line) -> None:
    handle = client.export(line, 1)
    assert not client.info(handle).tampered
    assert client.info(fx.KnownFence(handle, 1)).tampered, "it says OK and its fence is active"
    assert client.info(handle).tampered
    assert client.info(handle).status == 0, "the truth is the broker's"
    world.run(world.broker.tampered(handle, world.tick()))
    world.run(world.broker.tampered(99, world.tick()))
    assert sum(1 for event in world.events if type(event).__name__ == "SyncFileTampered") == 1


def test_a_poisoned_one_costs_its_user_the_sessions_and_nobody_else(world: World, client: Client, line: Line) -> None:
    second, stranger = world.connect(ALICE), world.connect(BOB)
    second.show(line)
    stranger.show(line)
    bad, good = second.export(line, 1), stranger.export(line, 1)
    world.run(world.broker.poison([bad, 12345], world.tick()))
    assert sorted(world.disconnected) == [client.session, second.session]
    assert bad not in world.eventfds
    world.advance(line, 1)
    assert world.eventfds[good] == 1


def test_whose_a_handle_is(world: World, client: Client, line: Line) -> None:
    assert world.broker.uid_of(client.export(line, 1)) == ALICE
    assert world.broker.uid_of(12345) == -1


# -- the end


def test_stopping_cancels_every_active_fence_once(world: World, client: Client, line: Line) -> None:
    done, pending = client.export(line, 1), client.export(line, 2)
    world.advance(line, 1)
    merged = client.merge(pending, client.sync_file("nobody@1"))
    any_of = client.merge(merged, client.sync_file("nobody@2"), any=True)
    guarded = client.sync_file("camera0@3", expiry=1_000)
    effects, n = world.broker.stop(world.tick())
    world.run(effects)
    assert n == 7
    assert {world.eventfds[handle] for handle in (pending, merged, any_of, guarded)} == {-errno.ECANCELED}
    assert world.eventfds[done] == 1
    assert world.broker.wake_at is None


def test_a_leak_of_accounting_ends_the_broker_loudly(make_world: MakeWorld) -> None:
    world = World()
    client = world.connect()
    client.export(client.create(), 1)
    world.state.account(ALICE).sync_files += 1
    effects, _ = world.broker.stop(world.tick())
    world.run(effects)
    with pytest.raises(AssertionError, match=r"an account is not empty: <account of uid 1000: .* sync_files 1,"):
        world.broker.end(world.tick())


def test_a_charge_is_released_once() -> None:
    account = Account(1)
    for slot in Slot:
        charge = Charge(account, slot)
        assert account.used(slot) == 1
        charge.release()
        assert account.is_empty
        with pytest.raises(AssertionError, match="released twice"):
            charge.release()
