"""Answers about what there is.  One's own uid's objects; uid 0 and the broker's own uid see all; others see nothing, not even counts."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from fencebroker.errors import Refusal
from fencebroker.model import U64_MAX
from fencebrokerd.core import effects as fx
from fencebrokerd.core.fence import Array, Fence, Placeholder, Stub, SyncFile, automatic_name
from fencebrokerd.core.merge import leaves
from fencebrokerd.core.minting import find_fence, find_timeline, uid_of
from fencebrokerd.core.turn import QUOTAS

if TYPE_CHECKING:
    from fencebrokerd.core.state import Session
    from fencebrokerd.core.timeline import Timeline
    from fencebrokerd.core.turn import Turn

__all__ = ["history", "info", "list_objects", "lookup", "quotas", "status"]

#: A page ends when its rows are estimated at so many bytes; a packet may have 16 KiB and the longest row is under 1 KiB.
PAGE_BYTES: Final = 12 * 1024
#: So many rows of quotas fill a page; those of one user stay together.
QUOTA_ROWS: Final = 120


def fence_row(fence: Fence) -> list[Any]:
    """One fence of a sync_file: what struct sync_fence_info has, then what only a broker knows."""
    driver, label = fence.names
    timeline = fence.timeline
    owner = None if timeline is None else [timeline.pid, timeline.uid, timeline.comm]
    return [
        label,
        driver,
        fence.status,
        fence.timestamp,
        fence.context,
        fence.shown_seqno,
        owner,
        fence.created,
        fence.deadline,
        fence.expires,
    ]


def info(turn: Turn, ref: int | None, reference: fx.Reference | None, cursor: int) -> None:
    """Say what a sync_file is, and the fences in it, a page at a time."""
    if isinstance(reference, fx.DetachedFence):
        stub = Stub(0, reference.status, 0, turn.session.uid, 0, True)
        row = [automatic_name(stub), reference.status, 1, 0, 0, 0, None, 0, 0, None, None, False, True]
        turn.answer(row, None, [fence_row(stub)])
        return
    fence = find_fence(turn, ref, reference)
    handle = ref if ref is not None else reference.handle if isinstance(reference, fx.KnownFence) else 0
    sync_file = turn.state.sync_files[handle]
    fences = leaves(fence)
    wanted = fences[cursor:]
    page: list[list[Any]]
    following: int | None = None
    if len(wanted) == 1:  # almost always; there is nothing to measure then
        page = [fence_row(wanted[0])]
    else:
        page, following = _page(wanted, fence_row, lambda index: cursor + index)
    row = [
        sync_file.label,
        fence.status,
        len(fences),
        handle,
        fence.context,
        fence.shown_seqno,
        [sync_file.pid, sync_file.uid, sync_file.comm],
        sync_file.created,
        fence.timestamp,
        fence.deadline,
        fence.expires,
        sync_file.tampered,
        False,
    ]
    turn.answer(row, following, page)


def _page(objects: Iterable[Any], row_of: Callable[[Any], list[Any]], position: Callable[[int], int]) -> tuple[list[list[Any]], int | None]:
    """Rows until the page is full, and where the next page starts (None: this was the last)."""
    rows: list[list[Any]] = []
    size = 0
    for index, thing in enumerate(objects):
        row = row_of(thing)
        size += sum(4 * len(x) + 8 if isinstance(x, str) else 40 + 9 * len(x) if isinstance(x, list) else 9 for x in row)
        if rows and size > PAGE_BYTES:
            return rows, position(index)
        rows.append(row)
    return rows, None


def _timeline_row(timeline: Timeline) -> list[Any]:
    return [
        timeline.context,
        timeline.name,
        timeline.driver,
        timeline.value,
        timeline.highest,
        timeline.n_active,
        timeline.pid,
        timeline.uid,
        timeline.comm,
        timeline.created,
        timeline.mode,
        timeline.expiry,
        len(timeline.sockets),
        timeline.creator_alive,
        list(timeline.sockets.values())[:16],
        timeline.advanced_at,
        None if (oldest := timeline.oldest) is None else oldest.created,
        timeline.past.n_fences,
        timeline.past.n_signalled,
        timeline.past.n_failed,
        list(chain.from_iterable(timeline.past.latencies.items())),
    ]


def _fence_list_row(fence: Fence) -> list[Any]:
    members = [member.id for member in fence.members] if isinstance(fence, Array) else []
    return [fence.id, _kind(fence), len(fence.sync_files), fence.uid, *fence_row(fence), *_point_name(fence), members]


def _point_name(fence: Fence) -> tuple[str | None, int | None]:
    """The timeline's name and its owner's uid, by which others ask for this point; None where it cannot be asked for."""
    if isinstance(fence, Placeholder):
        return fence.name, fence.owner
    timeline = fence.timeline
    return (None, None) if timeline is None or timeline.name is None else (timeline.name, timeline.uid)


def _kind(fence: Fence) -> str:
    if isinstance(fence, Array):
        return "any" if fence.any else "all"
    return "placeholder" if isinstance(fence, Placeholder) else "stub" if isinstance(fence, Stub) else "point"


def _sync_file_row(sync_file: SyncFile) -> list[Any]:
    fence = sync_file.fence
    return [
        sync_file.handle,
        sync_file.label,
        fence.status,
        fence.context,
        fence.shown_seqno,
        sync_file.pid,
        sync_file.uid,
        sync_file.comm,
        sync_file.created,
        fence.timestamp,
        sync_file.tampered,
        sync_file.session is not None,
        fence.id,
        _kind(fence),
        *_point_name(fence),
    ]


def _session_row(session: Session) -> list[Any]:
    return [session.id, session.pid, session.uid, session.comm, len(session.handles), len(session.minting), session.created]


def list_objects(turn: Turn, kind: str, cursor: int) -> None:
    """List one kind of object, a page at a time; ids grow, so a page starts after the last id of the page before."""
    tables: dict[str, tuple[dict[int, Any], Callable[[Any], list[Any]]]] = {
        "timelines": (turn.state.timelines, _timeline_row),
        "fences": (turn.state.fences, _fence_list_row),
        "sync_files": (turn.state.sync_files, _sync_file_row),
        "sessions": (turn.state.sessions, _session_row),
    }
    table, row_of = tables[kind]
    mine = [key for key, thing in table.items() if key > cursor and (turn.sees_all or thing.uid == turn.session.uid)]
    rows, following = _page((table[key] for key in mine), row_of, lambda index: mine[index] - 1)
    turn.answer(following, rows)


def lookup(turn: Turn, text: str) -> None:
    """Find one thing: a timeline by name, a point by name@N, a fence by context:seqno, a sync_file by #handle."""
    row: tuple[str, list[Any]] | None
    if text.startswith("#"):
        row = _look_for_sync_file(turn, _number(text[1:]))
    elif ":" in text and "@" not in text:
        context, _, seqno = text.partition(":")
        row = _look_for_fence(turn, _number(context), _number(seqno))
    else:
        row = _look_for_name(turn, text)
    if row is None:
        raise Refusal(errno.ENOENT, f"there is no {text!r} here (or it is not yours to see)")
    turn.answer(*row)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 20 or int(text) > U64_MAX:
        raise Refusal(errno.EINVAL, f"name must be NAME, NAME@N, CONTEXT:SEQNO or #ID with numbers of 0..2**64-1, not {text!r}")
    return int(text)


def _may_see(turn: Turn, uid: int) -> bool:
    return turn.sees_all or uid == turn.session.uid


def _look_for_sync_file(turn: Turn, handle: int) -> tuple[str, list[Any]] | None:
    sync_file = turn.state.sync_files.get(handle)
    return None if sync_file is None or not _may_see(turn, sync_file.uid) else ("sync_file", _sync_file_row(sync_file))


def _look_for_fence(turn: Turn, context: int, seqno: int) -> tuple[str, list[Any]] | None:
    timeline = turn.state.timelines.get(context)
    if timeline is not None:
        fence = timeline.points.get(seqno)
    else:
        fence = next((f for f in turn.state.fences.values() if f.context == context and f.shown_seqno == seqno), None)
    return None if fence is None or not _may_see(turn, fence.uid) else ("fence", _fence_list_row(fence))


def _look_for_name(turn: Turn, text: str) -> tuple[str, list[Any]] | None:
    path, at, seqno = text.rpartition("@") if "@" in text else (text, "", "")
    user, slash, name = path.rpartition("/")
    timeline = find_timeline(turn, user if slash else None, name)
    if timeline is None and not slash and turn.sees_all:
        named = [other for (_, known), other in turn.state.names.items() if known == name]
        timeline = named[0] if len(named) == 1 else None
    if timeline is None:
        return _look_for_placeholder(turn, user if slash else None, name, _number(seqno)) if at else None
    if not _may_see(turn, timeline.uid):
        return None
    return _look_for_fence(turn, timeline.context, _number(seqno)) if at else ("timeline", _timeline_row(timeline))


def _look_for_placeholder(turn: Turn, user: str | None, name: str, seqno: int) -> tuple[str, list[Any]] | None:
    """Somebody may wait for the point of a timeline that does not exist: one's own placeholder, or the first one that may be seen."""
    waiting = turn.state.placeholders.get((uid_of(turn, user), name), {})
    found = [fence for (wanted, _), fence in waiting.items() if wanted == seqno and _may_see(turn, fence.uid)]
    found.sort(key=lambda fence: fence.uid != turn.session.uid)
    return ("fence", _fence_list_row(found[0])) if found else None


def history(turn: Turn, context: int) -> None:
    """Say what happened to a timeline of late, oldest first."""
    timeline = turn.state.timelines.get(context)
    if timeline is None or not _may_see(turn, timeline.uid):
        raise Refusal(errno.ENOENT, f"there is no timeline with the context {context} here (or it is not yours to see)")
    entries = timeline.past.entries
    turn.answer([[at, what, seqno, status, None if who is None else list(who)] for at, what, seqno, status, who in entries])


def status(turn: Turn) -> None:
    """Counts: of one's own, or of all for who sees all, and the limits that bound them."""
    state, limits, session = turn.state, turn.limits, turn.session
    tables: tuple[tuple[str, Mapping[int, Any]], ...] = (
        ("sessions", state.sessions),
        ("timelines", state.timelines),
        ("fences", state.fences),
        ("sync_files", state.sync_files),
    )
    uid, sees_all = session.uid, turn.sees_all
    pairs: list[list[Any]] = []
    for name, things in tables:
        pairs.append([name, len(things) if sees_all else sum([thing.uid == uid for thing in things.values()])])
    active = sum([not fence.status and (sees_all or fence.uid == uid) for fence in state.fences.values()])
    pairs.append(["active_fences", active])
    if sees_all:
        pairs += [["signalled", state.n_signalled], ["descriptors", state.n_descriptors]]
    pairs += [["descriptor_limit", limits.descriptors], ["descriptor_reserve", limits.descriptor_reserve]]
    turn.answer(pairs)


def quotas(turn: Turn, cursor: int) -> None:
    """Say what each user has in use and may have now, from uid ``cursor`` on: of oneself, or of everybody for who sees all."""
    own = turn.session.uid
    uids = sorted({own, *(uid for uid, account in turn.state.accounts.items() if turn.sees_all and not account.is_empty)})
    rows: list[list[Any]] = []
    for uid in uids:
        if uid < cursor:
            continue
        if len(rows) >= QUOTA_ROWS:
            turn.answer(uid, rows)
            return
        account = turn.state.account(uid)
        rows += [[uid, quota, account.used(slot), turn.limit_of(uid, slot)] for slot, quota in QUOTAS.items()]
    turn.answer(None, rows)
