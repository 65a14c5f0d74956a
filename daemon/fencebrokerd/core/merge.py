"""What a merge of fences is made of.  A function of the fences alone: it changes nothing.

The kernel's rules (dma_fence_unwrap_merge): flatten arrays; per context keep only the latest point; leave out what has signalled; order
by context; of signalled ones only, a stub with the latest timestamp; one survivor is the result itself.
One difference: the kernel loses the error of a member that has already failed.  Here it stays a member, and the merge fails with the
first error (docs/design.md, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from fencebrokerd.core.fence import Array, Fence

__all__ = ["Plan", "plan_all", "plan_any", "unwrap"]


class Plan(NamedTuple):
    """The result: one ``fence``, or an array of ``members``, or (both empty) a signalled stub with ``timestamp``."""

    fence: Fence | None
    members: tuple[Fence, ...]
    timestamp: int


def unwrap(fences: Sequence[Fence], any: bool = False) -> list[Fence]:
    """Replace arrays by their members where that means the same, in order and without repetition."""
    for fence in fences:
        if isinstance(fence, Array):
            break
    else:
        return list(dict.fromkeys(fences))
    work = list(fences[::-1])
    flat: dict[Fence, None] = {}
    while work:
        fence = work.pop()
        if isinstance(fence, Array) and (fence.is_flat if not any else fence.any and fence.expires is None and not fence.status):
            work.extend(reversed(fence.members))
        else:
            flat[fence] = None
    return list(flat)


def leaves(fence: Fence) -> list[Fence]:
    """The fences a query lists for ``fence``: containers of every kind are unwrapped."""
    if not isinstance(fence, Array):
        return [fence]
    work: list[Fence] = [fence]
    seen = {fence.id}
    flat: list[Fence] = []
    while work:
        current = work.pop()
        if isinstance(current, Array):
            # Each once: containers that share containers have exponentially many paths.
            following = [member for member in current.members if member.id not in seen]
            seen.update(member.id for member in following)
            work.extend(reversed(following))
        else:
            flat.append(current)
    return flat


def plan_all(flat: Sequence[Fence]) -> Plan:
    """Signals when all have signalled.  ``flat`` is what ``unwrap`` returned."""
    failed: list[Fence] = []
    latest: dict[int, Fence] = {}
    for fence in flat:
        if fence.status < 0:
            failed.append(fence)
        elif not fence.status:
            rival = latest.get(fence.context)
            if rival is None or fence.seqno > rival.seqno:
                latest[fence.context] = fence
    if not latest:
        if failed:
            return Plan(min(failed, key=lambda fence: fence.timestamp), (), 0)
        return Plan(None, (), max(fence.timestamp for fence in flat))
    return _plan(sorted([*failed, *latest.values()], key=_by_point))


def plan_any(flat: Sequence[Fence]) -> Plan:
    """Signals when the first has signalled, with its status.  Of one context the earliest point is enough."""
    done = [fence for fence in flat if fence.status]
    if done:
        return Plan(min(done, key=lambda fence: fence.timestamp), (), 0)
    earliest: dict[int, Fence] = {}
    for fence in flat:
        rival = earliest.get(fence.context)
        if rival is None or fence.seqno < rival.seqno:
            earliest[fence.context] = fence
    return _plan(sorted(earliest.values(), key=_by_point))


_by_point = attrgetter("context", "seqno")


def _plan(members: list[Fence]) -> Plan:
    if len(members) == 1:
        return Plan(members[0], (), 0)
    return Plan(None, tuple(members), 0)
