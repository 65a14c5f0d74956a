"""Points by name: asked for before they are exported, before their timeline exists, and across a producer's restart."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from fencebroker import wire
from fencebroker.errors import Refusal
from fencebroker.model import U64_MAX
from fencebrokerd.core.fence import Array, Placeholder
from tests.core.world import ALICE, BOB, CAROL, ROOT, World

if TYPE_CHECKING:
    from tests.core.world import Client


@pytest.fixture
def alice(world: World) -> Client:
    return world.connect(ALICE)


@pytest.fixture
def bob(world: World) -> Client:
    return world.connect(BOB)


def test_a_point_may_be_waited_on_before_it_is_exported(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    early = alice.sync_file("camera0@7")
    exported = alice.export(line, 7)
    assert world.fence(early) is world.fence(exported), "one fence per context and seqno"
    world.advance(line, 7)
    assert (world.eventfds[early], world.eventfds[exported]) == (1, 1)


def test_a_point_that_passed_is_born_signalled(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    world.fail(line, 3, errno.EIO)
    world.advance(line, 9)
    assert [world.eventfds[alice.sync_file(f"camera0@{n}")] for n in (2, 3, 9, 10)] == [1, -errno.EIO, 1, 0]


def test_before_the_timeline_exists(world: World, alice: Client) -> None:
    handle = alice.sync_file("camera0@7")
    assert isinstance(world.fence(handle), Placeholder)
    assert alice.info(handle).fences[0][:2] == ["camera0", "placeholder"]
    line = alice.create("camera0")
    assert (world.fence(handle).context, world.fence(handle).seqno) == (line.context, 7)
    assert world.eventfds[handle] == 0
    world.advance(line, 6)
    assert world.eventfds[handle] == 0
    world.advance(line, 7)
    assert world.eventfds[handle] == 1
    assert not world.state.placeholders


def test_the_same_wish_twice_is_one_placeholder_per_user(world: World, alice: Client, bob: Client) -> None:
    one, two = alice.sync_file("camera0@7"), alice.sync_file("camera0@7")
    other = bob.sync_file(f"{ALICE}/camera0@7")
    assert world.fence(one) is world.fence(two)
    assert world.fence(one) is not world.fence(other)


def test_seqno_zero_is_signalled_as_soon_as_the_timeline_exists(world: World, alice: Client) -> None:
    handle = alice.sync_file("camera0@0")
    alice.create("camera0")
    assert world.eventfds[handle] == 1


def test_a_bound_point_that_is_signalled_completes_only_what_waits_for_nothing_else(world: World, alice: Client) -> None:
    other = alice.export(alice.create("other"), 5)
    zero = alice.sync_file("camera0@0")
    both, either, alone = alice.merge(zero, other), alice.merge(zero, other, any=True), alice.sync_file("camera0@0", expiry=10**9)
    alice.create("camera0")
    assert [world.eventfds[handle] for handle in (zero, both, either, alone)] == [1, 0, 1, 1]


def test_two_users_placeholders_in_one_merge_become_one_member(world: World, alice: Client, bob: Client) -> None:
    mine, theirs = alice.sync_file("camera0@3"), bob.sync_file(f"{ALICE}/camera0@3")
    merged = alice.merge(mine, world.reference(theirs), alice.sync_file("camera0@9"))
    line = alice.create("camera0", mode=0o644)
    fence = world.fence(merged)
    assert isinstance(fence, Array)
    assert len(fence.members) == 2
    world.advance(line, 3)
    assert (world.eventfds[mine], world.eventfds[theirs], world.eventfds[merged]) == (1, 1, 0)
    world.advance(line, 9)
    assert world.eventfds[merged] == 1


def test_binding_is_by_owner_and_name(world: World, alice: Client, bob: Client) -> None:
    of_alice, of_bob = bob.sync_file(f"{ALICE}/camera0@1"), bob.sync_file("camera0@1")
    line = bob.create("camera0")
    world.advance(line, 1)
    assert (world.eventfds[of_alice], world.eventfds[of_bob]) == (0, 1)


def test_the_mode_decides_who_is_bound(world: World, alice: Client, bob: Client) -> None:
    carol = world.connect(CAROL, gid=7, groups=[ALICE])  # in the group of the timeline's owner
    mine, others, of_group = (client.sync_file(f"{ALICE}/camera0@1") for client in (alice, bob, carol))
    line = alice.create("camera0", mode=0o640)
    world.advance(line, 1)
    assert [world.eventfds[handle] for handle in (mine, others, of_group)] == [1, 0, 1]
    assert isinstance(world.fence(others), Placeholder), "it waits on, for a timeline that lets it"
    world.close(line)
    assert world.eventfds[others] == 0
    world.advance(alice.create("camera0", mode=0o604), 1)
    assert world.eventfds[others] == 1


def test_missing_and_forbidden_look_the_same(world: World, alice: Client, bob: Client) -> None:
    alice.create("secret", mode=0o600)
    answers: list[tuple[object, ...]] = []
    for name in ("secret", "absent"):
        handle = bob.sync_file(f"{ALICE}/{name}@5")
        info = bob.info(handle)
        answers.append((info.status, info.seqno, info.fences[0][5], info.fences[0][6], info.n))
        with pytest.raises(Refusal) as refused:
            bob.lookup(f"{ALICE}/{name}")
        answers[-1] += (refused.value.error, refused.value.text.replace(name, "X"))
        with pytest.raises(Refusal) as refused:
            bob.open(f"{ALICE}/{name}")
        answers[-1] += (refused.value.error, refused.value.text.replace(name, "X"))
    assert answers[0] == answers[1]


def test_waiting_without_the_right_is_never_a_way_in(world: World, alice: Client, bob: Client) -> None:
    line = alice.create("secret", mode=0o620)
    handle = bob.sync_file(f"{ALICE}/secret@5")
    assert world.state.timelines[line.context].n_active == 0
    world.advance(line, 9)
    assert world.eventfds[handle] == 0


def test_a_restart_gives_a_new_context_and_ends_the_old_waits(world: World, alice: Client, bob: Client) -> None:
    old = alice.create("camera0", mode=0o644)
    waiting_on_old = bob.sync_file(f"{ALICE}/camera0@7")
    world.close(old)
    assert world.eventfds[waiting_on_old] == -errno.ENOENT
    between = bob.sync_file(f"{ALICE}/camera0@7")
    assert world.eventfds[between] == 0
    new = alice.create("camera0", mode=0o644)
    assert new.context != old.context
    world.advance(new, 7)
    assert world.eventfds[between] == 1
    assert world.eventfds[waiting_on_old] == -errno.ENOENT


def test_a_waiter_that_left_does_not_hold_its_placeholder(world: World, alice: Client) -> None:
    alice.release(alice.sync_file("camera0@7"))
    assert not world.state.placeholders
    assert not world.state.fences


def test_a_waiter_whose_descriptor_went_on_does(world: World, alice: Client) -> None:
    handle = alice.sync_file("camera0@7")
    alice.release(handle, exposed=True)
    alice.disconnect()
    producer = world.connect(ALICE)
    world.advance(producer.create("camera0"), 7)
    assert world.eventfds[handle] == 1


def test_an_unexported_points_fence_is_the_askers_and_goes_with_it(world: World, alice: Client, bob: Client) -> None:
    line = alice.create("camera0", mode=0o644)
    handle = bob.sync_file(f"{ALICE}/camera0@7")
    assert world.state.timelines[line.context].n_active == 1
    bob.release(handle)
    assert world.state.timelines[line.context].n_active == 0
    exported = alice.export(line, 7)
    world.advance(line, 7)
    assert world.eventfds[exported] == 1


def test_a_point_forgotten_and_asked_for_again_is_signalled_once(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    for _ in range(200):  # each leaves its seqno in the heap
        alice.release(alice.sync_file("camera0@7"))
    last = alice.sync_file("camera0@7")
    world.advance(line, 7)
    assert world.eventfds[last] == 1


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("camera0", "must look like 'camera0@7'"),
        ("camera0@", "must end in '@' and a seqno"),
        ("camera0@-1", "must end in '@' and a seqno"),
        ("camera0@1.0", "must end in '@' and a seqno"),
        ("camera0@٣", "must end in '@' and a seqno"),
        (f"camera0@{U64_MAX + 1}", "between 0 and"),
        ("camera0@99999999999999999999", "between 0 and"),
        ("@7", "must not be empty"),
        ("a@b@7", "printable and free of '@', '/', ':' and '#'"),
        ("/camera0@7", "empty user"),
        ("1000/@7", "must not be empty"),
        ("1/2/camera0@7", "printable and free of '@', '/', ':' and '#'"),
        ("alice/camera0@7", "numeric uid on the wire"),
        ("99999999999/camera0@7", "numeric uid on the wire"),
        ("-1/camera0@7", "numeric uid on the wire"),
        ("٣/camera0@7", "numeric uid on the wire"),
        ("cam\nera@7", "printable"),
    ],
)
def test_a_bad_point_is_refused_and_changes_nothing(world: World, alice: Client, point: str, message: str) -> None:
    before = len(world.events)
    with pytest.raises(Refusal) as refused:
        alice.sync_file(point)
    assert message in refused.value.text
    assert refused.value.error == errno.EINVAL
    assert len(world.events) == before


def test_the_largest_point_and_leading_zeros(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    assert world.fence(alice.sync_file(f"camera0@{U64_MAX}")).seqno == U64_MAX
    assert world.fence(alice.sync_file("camera0@007")).seqno == 7
    world.advance(line, U64_MAX)


# -- rights: mode bits for owner, group, others and root

#: Who asks -> (uid, gid, other groups).  The owner's gid is 50.
WHO = {
    "owner": (ALICE, 50, ()),
    "primary group": (BOB, 50, ()),
    "other group": (BOB, BOB, (9, 50)),
    "others": (CAROL, CAROL, (9,)),
    "root": (ROOT, ROOT, ()),
}
SHIFT = {"owner": 6, "primary group": 3, "other group": 3, "others": 0}


@pytest.mark.parametrize("mode", [0o000, 0o200, 0o400, 0o600, 0o020, 0o040, 0o060, 0o002, 0o004, 0o006, 0o644, 0o624, 0o077, 0o111, 0o777])
@pytest.mark.parametrize("who", WHO)
def test_the_mode_is_checked_like_a_files(world: World, mode: int, who: str) -> None:
    owner = world.connect(ALICE, gid=50)
    line = owner.create("camera0", mode=mode)
    uid, gid, groups = WHO[who]
    client = world.connect(uid, gid=gid, groups=groups)
    bits = 0o7 if who == "root" else mode >> SHIFT[who]
    may_read, may_write = bool(bits & 4), bool(bits & 2)

    handle = client.sync_file(f"{ALICE}/camera0@1")
    assert (not isinstance(world.fence(handle), Placeholder)) == may_read
    if may_write:
        opened = client.open(f"{ALICE}/camera0")
        assert client.export(opened, 2)
        world.signal(opened, wire.ADVANCE, 1)
        assert world.eventfds[handle] == (1 if may_read else 0)
    else:
        with pytest.raises(Refusal) as refused:
            client.open(f"{ALICE}/camera0")
        assert refused.value.error == (errno.EACCES if may_read else errno.ENOENT)
    world.advance(line, 1)


def test_an_own_denial_is_not_widened_by_group_or_others(world: World) -> None:
    owner = world.connect(ALICE, gid=50)
    owner.create("camera0", mode=0o077)
    assert isinstance(world.fence(owner.sync_file("camera0@1")), Placeholder)


def test_descriptors_ignore_the_mode(world: World, alice: Client, bob: Client) -> None:
    line = alice.create("camera0", mode=0o000)
    bob.show(line)
    handle = bob.export(line, 1)
    imported = bob.import_(world.reference(handle))
    world.advance(line, 1)
    assert (world.eventfds[handle], world.eventfds[imported]) == (1, 1)


def test_opening_what_is_no_name_is_enoent_or_einval(world: World, alice: Client) -> None:
    for name, error in (("absent", errno.ENOENT), ("/absent", errno.EINVAL), ("bob/absent", errno.EINVAL), ("", errno.ENOENT)):
        with pytest.raises(Refusal) as refused:
            alice.open(name)
        assert refused.value.error == error
