"""``make stress``: a million signals through the ring, with progress and a seed to repeat them."""

from __future__ import annotations

import os
import secrets
import sys
import time

import click

from fencebroker.testing import start_broker
from tests.chaos.frames import Wrong
from tests.stress.rounds import run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=1_000_000, show_default=True, type=click.IntRange(min=1), help="How many points to signal.")
@click.option("--seed", type=int, help="Repeat a run.  [default: a new one]")
def main(rounds: int, seed: int | None) -> None:
    """Signal points through the ring while others wait for them, import them, ask about them, and are let in.

    Exit code 0: nothing was wrong. 1: something was, and the last line says what.
    """
    first = secrets.randbits(31) if seed is None else seed
    click.echo(f"seed {first}: {rounds} rounds; repeat with --seed {first}")
    began = time.monotonic()
    with start_broker() as broker, click.progressbar(length=rounds, label="rounds", file=sys.stderr) as bar:
        try:
            done = run(broker.path, rounds, first, bar.update)
        except Wrong as err:
            click.echo(f"\n{err}", err=True)
            sys.exit(1)
    click.echo(f"{', '.join(f'{name} {n}' for name, n in done.items())}; {time.monotonic() - began:.0f} s")
    click.echo(f"{done['points']} points: no wake-up was lost or early, and every descriptor of a point said the same")


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "error::ResourceWarning"
    main()
