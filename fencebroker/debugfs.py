"""The text of the kernel's ``/sys/kernel/debug/sync/info``, as kernels up to 6.16 wrote it with its list of sync_files (sync_debug.c).

    objs:
    --------------
    camera0: 3
      fence active: 7 / 3

    fences:
    --------------
    [0000000000000005] frame-7: active
      camera0_fence active: 7 / 3

The number in brackets is the sync_file's id where the kernel prints an address.  A merged sync_file has a line for each of its fences.
``error`` and ``signaled`` are followed by ``@seconds.nanoseconds`` of CLOCK_MONOTONIC.  What a user may not see is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from fencebroker.model import printable
from fencebroker.rows import FenceRow, SyncFileRow, TimelineRow, read_row

if TYPE_CHECKING:
    from fencebroker.client import Broker
    from fencebroker.rows import Row

__all__ = ["render", "sync_info"]

R = TypeVar("R", bound="Row")

_ARRAYS: Final = ("all", "any")


def sync_info(broker: Broker) -> str:
    """Ask ``broker`` for everything this user may see of timelines and sync_files, and return it as the kernel's text."""
    # Each list is complete in itself; between them the world goes on.  What carries comes first, so that what it carries is there.
    sync_files = _list(broker, "sync_files", SyncFileRow)
    fences = _list(broker, "fences", FenceRow)
    return render(_list(broker, "timelines", TimelineRow), fences, sync_files)


def _list(broker: Broker, kind: str, row: type[R]) -> list[R]:
    rows = (read_row(kind.removesuffix("s"), columns) for columns in broker._listing(kind))
    return [known for known in rows if isinstance(known, row)]


def render(timelines: Iterable[TimelineRow], fences: Iterable[FenceRow], sync_files: Iterable[SyncFileRow]) -> str:
    """Write the text from the rows of LIST."""
    return "".join(line + "\n" for line in _lines(list(timelines), {fence.id: fence for fence in fences}, sync_files))


def _lines(timelines: list[TimelineRow], fences: Mapping[int, FenceRow], sync_files: Iterable[SyncFileRow]) -> Iterator[str]:
    values = {timeline.context: timeline.value for timeline in timelines}
    active: dict[int, list[FenceRow]] = {}
    for fence in fences.values():
        if fence.kind == "point" and not fence.status:
            active.setdefault(fence.context, []).append(fence)
    yield from ("objs:", "--------------")
    for timeline in timelines:
        yield f"{printable(_label(timeline))}: {timeline.value}"
        for fence in sorted(active.get(timeline.context, ()), key=lambda fence: fence.seqno):
            yield "  fence " + _state(fence, values)
        yield ""
    yield from ("fences:", "--------------")
    for sync_file in sync_files:
        yield f"[{sync_file.id:016x}] {printable(sync_file.name)}: {_word(sync_file.status)}"
        for fence in _leaves(fences.get(sync_file.fence), fences):
            yield f"  {printable(fence.obj_name)}_fence {_state(fence, values)}"
        yield ""


def _label(timeline: TimelineRow) -> str:
    return timeline.comm if timeline.name is None else timeline.name


def _leaves(fence: FenceRow | None, fences: Mapping[int, FenceRow]) -> list[FenceRow]:
    """The fences in ``fence``, containers taken apart; without those that are forgotten, or another user's."""
    found: dict[int, FenceRow] = {}
    work = [] if fence is None else [fence]
    while work:
        current = work.pop()
        if current.id in found:
            continue
        if current.kind in _ARRAYS:
            work += [fences[member] for member in reversed(current.members) if member in fences]
        else:
            found[current.id] = current
    return list(found.values())


def _word(status: int) -> str:
    return "error" if status < 0 else "signaled" if status else "active"


def _state(fence: FenceRow, values: Mapping[int, int]) -> str:
    text = _word(fence.status)
    if fence.timestamp_ns:
        text += f"@{fence.timestamp_ns // 10**9}.{fence.timestamp_ns % 10**9:09d}"
    if fence.kind in ("point", "placeholder"):
        text += f": {fence.seqno}"
        if fence.context in values:  # else its timeline has ended
            text += f" / {values[fence.context]}"
    return text
