"""One conversation, packet by packet: what clients say is written here, what the broker answers comes from its real core.

The core is a function of what it is told, so the same words always give the same packets.  Only what the shell adds stands here by hand:
the answer to a hello, four lines of a status, and the ids of eventfds; a test compares all of it with a running broker.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from fencebroker import wire
from fencebroker.limits import Limits
from fencebrokerd.core import effects as fx
from fencebrokerd.core.broker import Broker

__all__ = ["HOLDER", "LIMITS", "Packet", "conversation"]

#: What the golden broker is configured with; everything else has its default.
LIMITS: Final = Limits(timelines_per_uid=2)
#: The random number of the process that holds the timeline's descriptor.
HOLDER: Final = 0x0123456789ABCDEF
#: What a running broker answers differently: its version, its pid and uid, its age.
SOFTWARE: Final = "0.1.0"
BROKER_PID: Final = 612
BROKER_UID: Final = 990
_HOUR: Final = 3_600_000_000_000
_MS: Final = 1_000_000


class Packet(NamedTuple):
    """One packet.  ``arrow`` is ``A →`` for what session A sends, ``A ←`` for what it receives, ``T →`` for a timeline's socket."""

    arrow: str
    title: str
    message: list[Any]

    @property
    def text(self) -> str:
        """As the page shows it: who and what, the message as JSON, the bytes."""
        octets = wire.encode(self.message).hex(" ").split()
        lines = [" ".join(octets[start : start + 32]) for start in range(0, len(octets), 32)]
        return "\n    ".join([f"{self.arrow} {self.title}", json.dumps(self.message, ensure_ascii=False), *lines])


class _Client(NamedTuple):
    letter: str
    session: int
    uid: int
    groups: frozenset[int]
    pid: int
    comm: str


_CAPTURE: Final = _Client("A", 1, 1000, frozenset({1000}), 790, "capture")
_FILTER: Final = _Client("B", 3, 1001, frozenset({1000}), 791, "filter")


class _Recorder:
    """Talks to a core as a shell does, and keeps every packet."""

    def __init__(self) -> None:
        self.packets: list[Packet] = []
        self._core = Broker(LIMITS, BROKER_UID)
        self._now = _HOUR
        self._serials = {"A": 1, "B": 1}
        self._counter = 0

    def connect(self, client: _Client) -> None:
        """Say hello and be accepted; the answer is the shell's."""
        hello = [1, wire.HELLO, wire.VERSION, f"{client.comm}.py"]
        self._add(f"{client.letter} →", "hello", hello, wire.encode(hello))
        self._core.connect(client.session, client.uid, client.uid, client.groups, client.pid, client.comm, self._tick())
        accepted = [1, 0, wire.VERSION, SOFTWARE, BROKER_PID, client.session]
        self.packets.append(Packet(f"{client.letter} ←", "accepted", accepted))

    def turn_away(self) -> None:
        """Say hello in another version; the refusal is the shell's."""
        self.packets.append(Packet("C →", "hello of a newer client", [1, wire.HELLO, wire.VERSION + 1, "future"]))
        text = (
            f"this broker (fencebroker {SOFTWARE}) speaks version {wire.VERSION} of the protocol, the client version {wire.VERSION + 1}; "
            "restart the older of the two (a per-user broker: fencectl restart --user)"
        )
        self.packets.append(Packet("C ←", "refused, then end-of-file", [1, errno.EPROTONOSUPPORT, text, []]))

    def ask(self, client: _Client, op: int, *arguments: Any, shown: Sequence[fx.Reference] = (), what: str = "") -> None:
        """Send a request with the descriptors ``shown``, which ``what`` names on the page, and record what comes back."""
        self._serials[client.letter] += 1
        message = [self._serials[client.letter], op, *arguments]
        spec = wire.REQUESTS.get(op)
        packet = wire.encode(message)
        wire.decode_request(packet, len(shown))
        name = "an op this version does not know" if spec is None else spec.name
        self._add(f"{client.letter} →", name + (f" + the descriptor of {what}" if what else ""), message, packet)
        self._carry_out(self._core.handle(client.session, message, shown, self._tick()), op == wire.STATUS)

    def tell(self, op: int, *arguments: int) -> None:
        """Send on the timeline's socket."""
        self._counter += 1
        message = [HOLDER, self._counter, op, *arguments]
        wire.decode_timeline(wire.encode(message))
        self.packets.append(Packet("T →", wire.TIMELINE_OPS[op].name, message))
        self._carry_out(self._core.handle_timeline(1, message, self._tick()), False)

    def _add(self, arrow: str, title: str, message: list[Any], packet: bytes) -> None:
        assert len(packet) <= wire.PACKET_BYTES
        self.packets.append(Packet(arrow, title, message))

    def _tick(self) -> int:
        self._now += _MS
        return self._now

    def _carry_out(self, effects: Sequence[fx.Effect], is_status: bool) -> None:
        for effect in effects:
            if isinstance(effect, fx.CreateSocket):
                self._core.socket_made(effect.socket, 4700 + effect.socket, self._now)
            elif isinstance(effect, fx.Send):
                if is_status:
                    own = [["pid", BROKER_PID], ["version", SOFTWARE], ["uptime_ns", _HOUR], ["uid", BROKER_UID]]
                    own += [
                        ["keeper_pid", BROKER_PID - 2],
                        ["keeper_version", SOFTWARE],
                        ["generation", 1],
                        ["recoveries", 0],
                        ["reloads", 0],
                    ]
                    own += [["last_reason", None], ["journal_bytes", 4711], ["open_descriptors", 24], ["known_descriptors", 24]]
                    effect.message[2] += own
                for row in self._sync_files(effect.message):
                    row.append(9000 + row[0])
                self._add(self._letter(effect.session) + " ←", self._title(effect), effect.message, wire.encode(effect.message))
        if self._core.is_traced:
            self._publish()

    def _publish(self) -> None:
        sessions, lines = self._core.take_lines()
        for client in (_CAPTURE, _FILTER):
            seen = [list(line) for line in lines if line.uid == client.uid and client.session in sessions]
            if seen:
                self._add(f"{client.letter} ←", "events", [0, 0, seen], wire.encode([0, 0, seen]))

    def _sync_files(self, answer: list[Any]) -> list[list[Any]]:
        """The rows of sync_files in an answer to the last request; the shell adds their eventfds' ids."""
        asked = self.packets[-1].message
        if asked[1:3] == [wire.LIST, "sync_files"]:
            rows: list[list[Any]] = answer[3]
            return rows
        return [answer[3]] if asked[1] == wire.LOOKUP and answer[2] == "sync_file" else []

    @staticmethod
    def _letter(session: int) -> str:
        return _CAPTURE.letter if session == _CAPTURE.session else _FILTER.letter

    @staticmethod
    def _title(send: fx.Send) -> str:
        if send.message[1]:
            return f"refused: {errno.errorcode[send.message[1]]}"
        n = len(send.handles) + (send.socket is not None) + (send.ring is not None)
        return "answer" + (f" + {n} descriptor{'s' if n > 1 else ''}" if n else "")


def conversation() -> Iterator[Packet]:
    """Yield every packet, in order: each request and each message of a timeline at least once, and what is answered."""
    r = _Recorder()
    a, b = _CAPTURE, _FILTER
    r.connect(a)
    r.turn_away()
    # A timeline and its points.
    r.ask(a, wire.CREATE_TIMELINE, "camera0", "fencebroker", 0o640, 60_000 * _MS)
    r.ask(a, wire.EXPORT, 1, [1, 2], "frame", False)
    r.ask(a, wire.EXPORT, 1, None, "", True)
    r.tell(wire.ADVANCE, 1)
    # Fences that come back, are combined, are asked for by name.
    r.ask(a, wire.IMPORT, "", None, shown=[fx.KnownFence(1, 1)], what="handle 1")
    r.ask(a, wire.SYNC_FILE, "viewer0@7", 90_000 * _MS)
    r.ask(a, wire.MERGE, [2, None], "both", False, shown=[fx.KnownFence(5, 0)], what="handle 5")
    r.ask(a, wire.SET_DEADLINE, 6, _HOUR + 16 * _MS)
    r.ask(a, wire.INFO, 6, 0)
    # Points fail, pass, signal by themselves, are cancelled.
    r.tell(wire.FAIL, 2, errno.EIO)
    r.tell(wire.INC, 1)
    r.ask(a, wire.INFO, 2, 0)
    r.ask(a, wire.EXPORT, 1, [9, 10], "", False)
    r.tell(wire.SIGNAL, 9, 0)
    r.tell(wire.CANCEL, errno.ECANCELED)
    # Other ways to a timeline.
    r.ask(a, wire.OPEN_TIMELINE, "camera0")
    r.ask(a, wire.SHOW_TIMELINE, shown=[fx.KnownTimeline(1)], what="the timeline")
    # What there is.  A list starts after the id in its cursor.
    for kind, cursor in zip(wire.KINDS, (0, 4, 6, 0), strict=True):
        r.ask(a, wire.LIST, kind, cursor)
    for name in ("camera0", "camera0@9", "#5"):
        r.ask(a, wire.LOOKUP, name)
    r.ask(a, wire.STATUS)
    # Refusals.
    r.ask(a, wire.CREATE_TIMELINE, "camera0", "fencebroker", 0o600, None)
    r.ask(a, wire.CREATE_TIMELINE, "camera1", "fencebroker", 0o600, None)
    r.ask(a, wire.EXPORT, 77, [1], "", False)
    r.ask(a, wire.IMPORT, "", None, shown=[fx.Foreign("a pipe")], what="a pipe")
    r.ask(a, 99, "a field of tomorrow")
    # Events.
    r.ask(a, wire.SUBSCRIBE)
    r.ask(a, wire.EXPORT, 1, [12], "", False)
    r.ask(a, wire.WAIT_START, 9)
    r.tell(wire.ADVANCE, 12)
    r.ask(a, wire.WAIT_END, 29)
    # What a timeline did of late, and what is given up because nobody holds it.
    r.ask(a, wire.HISTORY, 1)
    # The end, which nobody answers.
    r.ask(a, wire.RELEASE, [4], [1, 2, 3])
    r.ask(a, wire.RECLAIM, [1, 5])
    r.ask(a, wire.FORGET_TIMELINE, 1)
    # Another user, whose group may read camera0.
    r.connect(b)
    r.ask(b, wire.SYNC_FILE, "1000/camera0@12", None)
    r.ask(b, wire.OPEN_TIMELINE, "1000/camera0")
    r.ask(b, wire.OPEN_TIMELINE, "1000/camera9")
    # Who may, and how much.
    r.ask(b, wire.CHMOD, "1000/camera0", 0o666)
    r.ask(a, wire.CHMOD, "camera0", 0o600)
    r.ask(a, wire.QUOTAS, 0)
    # A timeline that only its creator signals.
    r.ask(b, wire.CREATE_TIMELINE, None, "fencebroker", 0o600, None)
    r.ask(b, wire.RING, 5, HOLDER + 1)
    r.ask(b, wire.RING, 5, HOLDER + 1)
    yield from r.packets
