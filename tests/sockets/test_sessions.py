"""Sessions by the packet, against a broker in its own process: what an honest client may do, however unusual, and stay connected."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import pytest

from fencebroker import wire
from fencebroker.fds import OwnedFd, close_all
from fencebroker.model import U64_MAX
from tests.helpers import LIMIT
from tests.process.wire_client import WireClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers import BrokerProcess

DAY_NS = 86_400 * 10**9


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[WireClient]:
    with WireClient(broker.path) as client:
        yield client


def create(client: WireClient, expiry: int | None = None) -> tuple[int, list[OwnedFd]]:
    """Create a timeline; returns its context and its descriptor."""
    client.say([2, wire.CREATE_TIMELINE, None, "fencebroker", 0o600, expiry])
    packet, fds = client.take()
    return wire.decode_answer(packet)[2], fds


@pytest.mark.parametrize("expiry", [25 * DAY_NS, 3650 * DAY_NS, 2**63, U64_MAX])
def test_an_expiry_beyond_what_epoll_can_wait(client: WireClient, expiry: int) -> None:
    context, fds = create(client, expiry)
    assert client.ask(wire.EXPORT, context, [1], "", False)[1] == 0
    assert client.ask(wire.SYNC_FILE, "nobody@1", expiry)[1] == 0
    assert client.ask(wire.STATUS)[1] == 0
    assert client.ask(wire.INFO, 1, 0)[1] == 0
    close_all(fds)


@pytest.mark.parametrize(("window", "n_fences"), [(2, 64), (4, 64), (4, 1), (16, 16), (128, 2), (256, 1)])
def test_answers_on_the_way_count_until_they_are_read_and_no_longer(client: WireClient, window: int, n_fences: int) -> None:
    """So many requests are always under way; never are more than 256 descriptors unread, though thousands are sent in all."""
    context, fds = create(client)
    serial = 10

    def ask() -> None:
        nonlocal serial
        serial += 1
        client.say([serial, wire.EXPORT, context, list(range(1, n_fences + 1)), "", False])

    for _ in range(window):
        ask()
    for _ in range(1_500 // n_fences + window):
        packet, received = client.take()
        assert packet, "an honest client was cut"
        answer = wire.decode_answer(packet)
        assert answer[1] == 0
        assert len(received) == n_fences
        close_all(received)
        client.say([1, wire.RELEASE, list(range(answer[2], answer[2] + n_fences)), []])
        ask()
    close_all(fds)


def test_a_long_answer_unread_beside_descriptors_does_not_count_as_them(client: WireClient) -> None:
    context, fds = create(client)
    for first in range(1, 200, 50):  # read at once: none of these counts any more
        assert client.ask(wire.EXPORT, context, list(range(first, first + 50)), "", False)[1] == 0
    for serial in range(100, 104):
        client.say([serial, wire.LIST, "sync_files", 0])
        client.say([serial, wire.EXPORT, context, list(range(1, 60)), "", False])
    for serial in range(100, 104):
        assert client.hear()[0] == serial
        assert client.hear()[:2] == [serial, 0]
    close_all(fds)


def test_it_is_cut_at_the_first_descriptor_too_many(broker: BrokerProcess) -> None:
    """256 may be unread.  One that asks for the 257th without reading is cut; what it had been sent stays readable."""
    with WireClient(broker.path) as client, WireClient(broker.path) as other:
        context, fds = create(client)
        for serial in range(10, 266):
            client.say([serial, wire.EXPORT, context, [1], "", False])
        while dict(other.ask(wire.STATUS)[2])["sync_files"] < 256:
            pass  # each question waits for its answer
        client.say([266, wire.EXPORT, context, [1], "", False])
        hung_up = select.poll()
        hung_up.register(client.sock, 0)
        assert hung_up.poll(LIMIT * 1000)
        assert [client.hear()[0] for _ in range(256)] == list(range(10, 266))
        assert client.is_cut()
        close_all(fds)
        assert other.ask(wire.STATUS)[1] == 0
    assert broker.log().count("left answers with 256 descriptors unread") == 1


def test_a_thousand_ways_to_be_malformed_are_one_line(broker: BrokerProcess) -> None:
    for n in range(300):
        with WireClient(broker.path) as client:
            client.say([2, wire.RELEASE, *[n] * n])
            assert client.is_cut()
    assert broker.log().count("disconnected pid") == 1
