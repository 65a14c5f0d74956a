"""``make chaos``: many kills, with progress, a seed to repeat them, and a limit."""

from __future__ import annotations

import os
import secrets
import sys
import time

import click

from tests.chaos.crowd import Layout
from tests.chaos.frames import Wrong
from tests.chaos.killing import Killer
from tests.chaos.rampage import rampage

#: Workers are exchanged after so many kills, so that a long run starts with an empty broker again and again.
ROUND = 500


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kills", default=10_000, show_default=True, type=click.IntRange(min=1), help="How many brokers to kill.")
@click.option("--seed", type=int, help="Repeat a run.  [default: a new one]")
@click.option("--minutes", default=120.0, show_default=True, type=click.FloatRange(min=0), help="Stop after so long; 0: never.")
def main(kills: int, seed: int | None, minutes: float) -> None:
    """Kill the broker again and again while producers, consumers, mergers and importers use it, and see that nobody notices.

    Exit code 0: nothing was wrong. 1: something was, and the last lines say what. 3: the time was over before all kills were done.
    """
    first = secrets.randbits(31) if seed is None else seed
    click.echo(f"seed {first}: {kills} kills; repeat with --seed {first}")
    ends = time.monotonic() + minutes * 60 if minutes else 0.0
    done = 0
    with click.progressbar(length=kills, label="kills", file=sys.stderr) as bar:
        while done < kills:
            seen = 0
            total = min(ROUND, kills - done)

            def progress(killer: Killer, total: int = total) -> None:
                nonlocal seen
                now = min(killer.kills, total)
                bar.update(now - seen)
                seen = now

            left = ends - time.monotonic() if ends else 0.0
            if ends and left <= 0:
                break
            try:
                line = rampage(first + done, total, layout=Layout(producers=3, consumers=3, visitors=2), limit=left, progress=progress)
            except Wrong as err:
                click.echo(f"\n{err}", err=True)
                sys.exit(1)
            done += seen
            click.echo(f"\r{line}")
    click.echo(f"{done} kills, nothing lost, nothing early, nothing twice, no client saw an error")
    sys.exit(0 if done >= kills else 3)


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "error::ResourceWarning"
    main()
