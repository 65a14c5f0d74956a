"""Kill after kill, and in the end everything is as if nothing had happened."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping

from tests.chaos.crowd import Crowd, Layout
from tests.chaos.frames import Wrong
from tests.chaos.killing import Killer
from tests.helpers import LIMIT

__all__ = ["rampage"]

_SIMPLE = Layout()


def rampage(
    seed: int,
    kills: int,
    *,
    layout: Layout = _SIMPLE,
    env: Mapping[str, str | None] | None = None,
    limit: float = 0.0,
    longest: float = 0.1,
    progress: Callable[[Killer], None] = lambda _: None,
    company: Callable[[str], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> str:
    """Kill so many brokers under a crowd of workers.  What went well, in one line; ``Wrong`` if it did not.

    ``limit`` seconds end it before.  No broker lives for more than ``longest`` seconds.  ``company`` is with the workers until they leave.
    The seed makes the workers and the moments the same again, but not the order in which the machine runs them.
    """
    with Crowd(seed, layout, env=env) as crowd:
        killer = Killer(crowd.control, random.Random(seed))
        started = killer.clock()
        try:
            with company(crowd.process.path):
                while killer.kills < kills and not (limit and killer.clock() - started > limit):
                    killer.strike(longest)
                    crowd.check_workers()
                    progress(killer)
                totals = crowd.finish()
            crowd.check_books()
            recoveries = crowd.control._status()["recoveries"]
            log = crowd.stop()
        except Exception as err:
            raise Wrong(f"seed {seed}, after {killer}: {err}\nthe end of the broker's log:\n{crowd.process.log()[-3000:]}") from err
        if recoveries < len(killer.pauses):
            raise Wrong(f"{killer}, and the broker counts {recoveries} recoveries")
        for bad in ("missing descriptor", "unknown descriptor"):
            if bad in log:
                raise Wrong(f"seed {seed}: table and journal differ:\n" + "\n".join(line for line in log.splitlines() if bad in line))
        if killer.kills and max(killer.pauses) > LIMIT:
            raise Wrong(f"a pause took {max(killer.pauses):.1f} s")
        return f"seed {seed}: {killer}; " + ", ".join(f"{key} {value}" for key, value in totals.items())
