"""Everything that a client can do, one thing after the other, each checked: ``python -m tests.chaos.actions PATH PATIENCE``.

Each line on its standard input is the name of an action, or ``all``; the answer is a line, when it went well.  An error ends the process: no
client may see one, wherever the broker dies meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final

import fencebroker as fb
from fencebroker.fds import OwnedFd
from fencebroker.rows import TimelineRow, read_row
from fencebroker.timeline import Signaller
from tests.chaos.frames import Wrong

__all__ = ["ACTIONS", "Client"]

#: Seconds that the expiring fences here have.
EXPIRY: Final = 0.03


class Client:
    """One process's dealings with a broker that dies under it."""

    def __init__(self, path: str, patience: float) -> None:
        self._path = path
        self._patience = patience
        self._broker = fb.connect(path, autostart=False)
        self._n = 0
        self._standing: list[tuple[fb.SyncFile, int]] = []
        self._stand()

    def _name(self) -> str:
        self._n += 1
        return f"t{self._n}"

    def expect(self, fence: fb.SyncFile, status: int, what: str) -> None:
        """Wait for a status; 0 is looked for at once."""
        if status and not select.select([fence], [], [], self._patience)[0]:
            raise Wrong(f"lost: {what} did not signal within {self._patience} s; the broker says {self._broker.info(fence)}")
        if fence.status() != status:
            raise Wrong(f"{'early' if not status else 'wrong status'}: {what} has status {fence.status()}, not {status}")

    # -- what stands while other things happen

    def _stand(self) -> None:
        """Active fences of every kind, to be there whenever the broker dies."""
        self._timeline = self._broker.create_timeline(self._name())
        one, two, private = self._timeline.export(1), self._timeline.export(2), self._timeline.export(2, private=True)
        self._later = self._name()
        placeholder = self._broker.sync_file(f"{self._later}@1", expiry=600)
        self._standing = [
            (one, 1),
            (two, -errno.EIO),
            (private, -errno.EIO),
            (self._broker.merge([one, placeholder]), 1),
            (self._broker.merge([one, two], when="any"), 1),
            (self._broker.import_sync_file(two), -errno.EIO),
            (placeholder, 1),
        ]

    def stood(self) -> None:
        """They are as they were; then they signal, and others take their place."""
        for fence, _ in self._standing:
            self.expect(fence, 0, f"standing {fence}")
        self._timeline.advance(1)
        with self._broker.create_timeline(self._later) as later:
            later.advance(1)
            self._timeline.fail(2, errno.EIO)
            for fence, status in self._standing:
                self.expect(fence, status, f"standing {fence}")
                fence.close()
        self._timeline.close()
        self._stand()

    # -- actions

    def connect(self) -> None:
        with fb.connect(self._path, autostart=False) as broker:
            broker._status()

    def create_timeline(self) -> None:
        name = self._name()
        with self._broker.create_timeline(name):
            try:
                self._broker.create_timeline(name).close()
            except FileExistsError:
                return
            raise Wrong(f"{name} was created twice")

    def export(self) -> None:
        with self._broker.create_timeline() as timeline, timeline.export(2) as fence, timeline.export() as following:
            self.expect(fence, 0, "an export")
            info = self._broker.info(following)
            if info.seqno != 3:
                raise Wrong(f"the point after 2 is {info.seqno}")

    def export_many(self) -> None:
        with self._broker.create_timeline() as timeline:
            fences = timeline.export_many(range(1, 9))
            for seqno, fence in enumerate(fences, 1):
                timeline.advance(seqno)
                self.expect(fence, 1, f"export {seqno} of many")
            for fence in fences:
                fence.close()

    def advance(self) -> None:
        with self._broker.create_timeline() as timeline, timeline.export(1) as one, timeline.export(2) as two:
            timeline.advance(1)
            self.expect(one, 1, "an advanced point")
            self.expect(two, 0, "a point above")
            timeline.advance(2)
            self.expect(two, 1, "an advanced point")

    def increase(self) -> None:
        """Two holders of one timeline: what one of them sends must not count twice, nor for the other."""
        name = self._name()
        with self._broker.create_timeline(name) as timeline:
            first, second = (Signaller(OwnedFd(timeline.share().detach())) for _ in range(2))
            fences = timeline.export_many([1, 2, 3, 4, 5])
            for n, holder in enumerate((first, second, first, second), 1):
                holder.inc(1)
                self.expect(fences[n - 1], 1, f"inc {n}")
                self.expect(fences[n], 0, f"the point after inc {n}")
            row = read_row(*self._broker._lookup(name))
            assert isinstance(row, TimelineRow)
            if row.value != 4:
                raise Wrong(f"four increments make {row.value}")
            for signaller in (first, second):
                signaller.close()
        self.expect(fences[4], -errno.ENOENT, "what was left on a closed timeline")
        for fence in fences:
            fence.close()

    def fail(self) -> None:
        with self._broker.create_timeline() as timeline, timeline.export(1) as one, timeline.export(2) as two:
            timeline.fail(2, errno.EIO)
            self.expect(one, 1, "a point below a failed one")
            self.expect(two, -errno.EIO, "a failed point")
            with timeline.export(2) as again:
                self.expect(again, -errno.EIO, "a later export of a failed point")

    def merge(self) -> None:
        with contextlib.ExitStack() as stack:
            a, b = (stack.enter_context(self._broker.create_timeline()) for _ in range(2))
            members = [stack.enter_context(timeline.export(1)) for timeline in (a, b)]
            both = stack.enter_context(self._broker.merge(members))
            first = stack.enter_context(self._broker.merge(members, when="any"))
            a.advance(1)
            self.expect(first, 1, "a merge of any")
            self.expect(both, 0, "a merge of all with one left")
            b.advance(1)
            self.expect(both, 1, "a merge of all")

    def import_(self) -> None:
        with self._broker.create_timeline() as timeline, timeline.export(1) as fence:
            fence.fileno()
            with self._broker.import_sync_file(fence.fileno()) as private:
                self.expect(private, 0, "an import")
                timeline.advance(1)
                self.expect(private, 1, "an import")

    def release(self) -> None:
        """What nobody has seen is given back: its descriptor is closed, also at the broker's."""
        with self._broker.create_timeline() as timeline:
            for fence in timeline.export_many(range(1, 4)):
                fence.close()
            with timeline.export(1) as fence:
                timeline.advance(1)
                self.expect(fence, 1, "an export after a release")

    def close_timeline(self) -> None:
        timeline = self._broker.create_timeline()
        with timeline.export(1) as fence:
            timeline.close()
            self.expect(fence, -errno.ENOENT, "a point of a closed timeline")

    def cancel(self) -> None:
        with contextlib.suppress(InterruptedError), self._broker.create_timeline() as timeline:
            fence = timeline.export(1)
            raise InterruptedError
        with fence:
            self.expect(fence, -errno.ECANCELED, "a point of a cancelled timeline")

    def named_point(self) -> None:
        name = self._name()
        with self._broker.create_timeline(name) as timeline, self._broker.sync_file(f"{name}@2") as fence:
            self.expect(fence, 0, "a point by name")
            timeline.advance(2)
            self.expect(fence, 1, "a point by name")

    def placeholder(self) -> None:
        name = self._name()
        with self._broker.sync_file(f"{name}@1") as fence, self._broker.create_timeline(name) as timeline:
            self.expect(fence, 0, "a point of a timeline that was still to come")
            timeline.advance(1)
            self.expect(fence, 1, "a point of a timeline that was still to come")

    def open_timeline(self) -> None:
        name = self._name()
        timeline = self._broker.create_timeline(name)
        with self._broker.open_timeline(name) as opened, opened.export(1) as fence, opened.export(2) as last:
            timeline.close()
            self.expect(fence, 0, "a point of a timeline with another holder")
            opened.advance(1)
            self.expect(fence, 1, "a point of a timeline with another holder")
            opened.close()
            self.expect(last, -errno.ENOENT, "a point of a timeline whose last holder left")

    def expiry(self) -> None:
        began = time.monotonic()
        with self._broker.create_timeline(expiry=EXPIRY) as timeline, timeline.export(1) as fence:
            self.expect(fence, -errno.ETIME, "an expiring point")
            if time.monotonic() - began < EXPIRY:
                raise Wrong("early: a point expired before its time")
        with self._broker.sync_file(f"{self._name()}@1", expiry=EXPIRY) as fence:
            self.expect(fence, -errno.ETIME, "a point that never came")

    def deadline(self) -> None:
        with self._broker.create_timeline() as timeline, timeline.export(1) as fence:
            fence.set_deadline(1000)
            if self._broker.info(fence).deadline_ns != 1000:
                raise Wrong("a deadline was forgotten")

    def die(self) -> None:
        """A producer dies."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            pid = os.fork()
            if not pid:
                with contextlib.suppress(BaseException):
                    timeline = self._broker.create_timeline()
                    promise = timeline.export(1)
                    fb.send_sync_file(theirs, b"promise", promise)
                    os._exit(0)
                os._exit(1)
            theirs.close()
            with fb.recv_sync_file(ours)[1] as fence:
                self.expect(fence, -errno.ENOENT, "a promise of a dead producer")
            if os.waitpid(pid, 0)[1]:
                raise Wrong("a producer that was to die saw an error before")

    def watch(self) -> None:
        """A subscriber hears of what happens after it began, of each thing at most once."""
        events = self._broker.events()
        try:
            with self._broker.create_timeline() as timeline, timeline.export(1) as fence:
                timeline.advance(1)
                self.expect(fence, 1, "a watched point")
                context = timeline.context
            # The last thing about a timeline that a broker tells; if that broker died before it said so, the next timeline ends the wait.
            seen = []
            with self._broker.create_timeline(), self._broker.create_timeline():
                for event in events:
                    seen.append((event.name, event.context, event.seqno))
                    if event.context > context and event.name == "timeline_create":
                        break
            signalled = [what for what in seen if what[0] == "dma_fence_signaled"]
            if len(set(signalled)) != len(signalled):
                raise Wrong(f"twice in the trace: {seen}")
        finally:
            events.close()  # type: ignore[attr-defined]

    def leave(self) -> None:
        """The session ends, and everything that was made in it lives on."""
        broker = fb.connect(self._path, autostart=False)
        with broker.create_timeline() as timeline, timeline.export(1) as fence:
            broker.close()
            timeline.advance(1)
            self.expect(fence, 1, "a point of a session that ended")

    def once(self) -> None:
        """Every kind of packet, and every end, as few times as that can be."""
        name = self._name()
        broker = fb.connect(self._path, autostart=False)  # accept, hello
        placeholder = broker.sync_file(f"{name}@1")
        timeline = broker.create_timeline(name)
        holder = Signaller(OwnedFd(timeline.share().detach()))
        first, failed = timeline.export(1), timeline.export(3)
        fences = timeline.export_many([2, 4, 5])
        merged = broker.merge([placeholder, fences[0]])
        private = broker.import_sync_file(failed)
        timeline.export(9).close()  # release
        broker.info(merged)
        timeline.advance(1)
        self.expect(first, 1, "an advanced point")
        self.expect(placeholder, 1, "a placeholder")
        self.expect(merged, 0, "a merge with one left")
        holder.inc(1)
        self.expect(merged, 1, "a merge")
        timeline.fail(3, errno.EIO)
        self.expect(failed, -errno.EIO, "a failed point")
        self.expect(private, -errno.EIO, "an import of a failed point")
        holder.inc(1)
        self.expect(fences[1], 1, "an increased point")
        self.expect(fences[2], 0, "a point that nobody signalled")
        expiring = broker.sync_file(f"{name}@8", expiry=EXPIRY)
        self.expect(expiring, -errno.ETIME, "an expiring point")
        broker.close()  # end-of-file of a session
        holder.close()
        timeline.close()  # end-of-file of a timeline
        self.expect(fences[2], -errno.ENOENT, "a point of a closed timeline")
        for fence in (first, failed, *fences, merged, private, placeholder, expiring):
            fence.close()

    def close(self) -> None:
        """Leave."""
        for fence, _ in self._standing:
            fence.close()
        self._timeline.close()
        self._broker.close()


#: What can be in flight when the broker dies.
ACTIONS: Final = (
    "connect",
    "create_timeline",
    "export",
    "export_many",
    "advance",
    "increase",
    "fail",
    "merge",
    "import_",
    "release",
    "close_timeline",
    "cancel",
    "named_point",
    "placeholder",
    "open_timeline",
    "expiry",
    "deadline",
    "die",
    "watch",
    "leave",
    "stood",
)


def main(path: str, patience: float) -> None:
    """Do what the lines say."""
    client = Client(path, patience)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = line.strip()
        for name in ACTIONS if wanted == "all" else [wanted]:
            action: Callable[[], None] = getattr(client, name)
            try:
                action()
            except Exception as err:  # noqa: BLE001 - whatever it is, it is reported and ends this program
                err.add_note(f"while {name}")
                traceback.print_exc()
                os._exit(1)  # without complaints about what it leaves open: what went wrong is the last word
        print(f"done {wanted}", flush=True)
    client.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
