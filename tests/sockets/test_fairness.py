"""Whose turn it is: least served first, no credit for pauses, and nothing to pay while nobody else waits."""

from __future__ import annotations

from collections import Counter

from fencebrokerd.shell.fairness import ALONE, BUSY, EVERYBODY, HALF, NOBODY, QUANTUM, Fairness


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0
        self.asked = 0

    def __call__(self) -> int:
        self.asked += 1
        return self.now


def serve(fairness: Fairness, clock: Clock, users: dict[int, int], cost: dict[int, int]) -> Counter[int]:
    """Handle one poll in which each user has so many events, of so many nanoseconds each; returns who was served how often."""
    events = [(fd, 1) for fd, _ in enumerate(u for u, n in users.items() for _ in range(n))]
    owner = [u for u, n in users.items() for _ in range(n)]
    served: Counter[int] = Counter()
    for fd, _ in fairness.order(events, owner.__getitem__):
        served[owner[fd]] += 1
        clock.now += cost[owner[fd]]
    return served


def test_one_event_costs_nothing() -> None:
    clock = Clock()
    assert serve(Fairness(clock), clock, {1001: 1}, {1001: 10_000})[1001] == 1
    assert clock.asked == 0


def test_alone_one_is_served_for_longer_but_not_for_ever() -> None:
    """Somebody may have come meanwhile.  Whoever was late in the order of one poll is first in the next, which has the same order."""
    clock = Clock()
    fairness = Fairness(clock)
    events = [(fd, 1) for fd in range(300)]
    served: Counter[int] = Counter()
    for _ in range(300):
        began = clock.now
        for fd, _ in fairness.order(events, lambda _: 1000):
            served[fd] += 1
            clock.now += 10_000
        assert ALONE < clock.now - began <= ALONE + 10_000
    assert set(served) == set(range(300))
    assert max(served.values()) - min(served.values()) <= 1


def test_sessions_of_one_user_take_turns_also_beside_another() -> None:
    clock = Clock()
    fairness = Fairness(clock)
    events = [(fd, 1) for fd in range(100)]
    served: Counter[int] = Counter()
    for _ in range(500):
        for fd, _ in fairness.order(events, lambda fd: fd == 50):
            served[fd] += 1
            clock.now += 10_000
    assert served.pop(50) == 500
    assert max(served.values()) - min(served.values()) <= 1


def test_many_sessions_are_no_larger_share() -> None:
    """One user with 250 that want something against one with one: each has half of the time."""
    clock = Clock()
    fairness = Fairness(clock)
    served: Counter[int] = Counter()
    for _ in range(1000):
        served += serve(fairness, clock, {1: 250, 2: 1}, {1: 10_000, 2: 10_000})
    assert served[2] == 1000  # it is served in every poll
    served.clear()
    for _ in range(1000):
        served += serve(fairness, clock, {1: 250, 2: 250}, {1: 10_000, 2: 30_000})
    assert 2.7 < served[1] / served[2] < 3.3  # time counts, not packets


def test_who_was_served_least_is_first() -> None:
    clock = Clock()
    fairness = Fairness(clock)
    for _ in range(100):
        serve(fairness, clock, {1: 5, 2: 5}, {1: 50_000, 2: 50_000})
    order = [fd for fd, _ in fairness.order([(1, 1), (2, 1), (3, 1)], lambda fd: fd)]
    assert order[0] == 3


def test_a_pause_is_no_credit() -> None:
    """Who comes back after a long time gets its share, not what it missed."""
    clock = Clock()
    fairness = Fairness(clock)
    for _ in range(1000):
        serve(fairness, clock, {1: 5, 2: 5}, {1: 50_000, 2: 50_000})
    served: Counter[int] = Counter()
    for _ in range(200):
        served += serve(fairness, clock, {1: 5, 3: 5}, {1: 50_000, 3: 50_000})
    assert 0.9 < served[1] / served[3] < 1.1


def test_wanting_little_is_no_credit() -> None:
    """Who took less than its share for long has no more than its share when it wants all."""
    clock = Clock()
    fairness = Fairness(clock)
    for _ in range(1000):
        serve(fairness, clock, {1: 50, 2: 1}, {1: 10_000, 2: 100})
    served: Counter[int] = Counter()
    for _ in range(200):
        served += serve(fairness, clock, {1: 50, 2: 50}, {1: 10_000, 2: 10_000})
    assert 0.9 < served[1] / served[2] < 1.1


def test_epoll_is_asked_again_soon() -> None:
    """A crowd does not hold up who comes during its turn."""
    clock = Clock()
    fairness = Fairness(clock)
    served = serve(fairness, clock, dict.fromkeys(range(1, 200), 1), dict.fromkeys(range(1, 200), 10_000))
    assert sum(served.values()) <= QUANTUM // 10_000 + 1


def test_the_process_itself_comes_first() -> None:
    fairness = Fairness(Clock())
    order = [fd for fd, _ in fairness.order([(5, 1), (6, 1), (7, 1)], {5: 1000, 6: NOBODY, 7: EVERYBODY}.__getitem__)]
    assert order[0] == 6


def test_who_is_busy() -> None:
    """Much work of late; a user of whom nobody knows anything is not."""
    clock = Clock()
    fairness = Fairness(clock)
    while not fairness.is_busy(1):
        serve(fairness, clock, {1: 1, 2: 1}, {1: BUSY // 2, 2: 1})
    assert not fairness.is_busy(2)
    assert not fairness.is_busy(99)
    clock.now += 2 * HALF
    assert not fairness.is_busy(1)


def test_clocks_of_users_who_are_gone_are_let_go() -> None:
    clock = Clock()
    fairness = Fairness(clock)
    for uid in range(10_000):
        serve(fairness, clock, {uid: 2, uid + 1: 2}, {uid: 10, uid + 1: 10})
    assert len(fairness._served) < 2000
