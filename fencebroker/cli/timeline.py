"""``advance``: what one does with a timeline from outside its process."""

from __future__ import annotations

import click

from fencebroker.cli.command import Invocation, Verb, asks_broker, parsed, seqno, timeline_name, wants_json
from fencebroker.cli.suggest import suggesting

__all__ = ["advance"]

EXAMPLE = """\
$ fencectl advance -v camera0 7
camera0 went from 6 to 7
"""


@click.command(cls=Verb, example=EXAMPLE, short_help="Signal every point of a timeline up to N.")
@click.argument("name", callback=parsed(timeline_name))
@click.argument("n", callback=parsed(seqno))
@click.option("-v", "--verbose", is_flag=True, help="Say what the value was and is.")
@asks_broker
@wants_json
@click.pass_obj
def advance(invocation: Invocation, name: str, n: int, verbose: bool) -> None:
    """Signal every point of a timeline up to N, in place of its producer.

    The timeline must have a name and let you write: one's own timelines always do, another's (user/name) if its mode has a "w" for you.
    A timeline that is at N or above stays as it is, and that is no error. Nothing is printed when all goes well.
    """
    with invocation.connect() as broker, suggesting(broker, name), broker.open_timeline(name) as timeline:
        before = timeline.value
        timeline.advance(n)
        broker._status()  # the message is one-way; after an answer to a later request it has been carried out
        after = timeline.value
    invocation.output.json({"name": name, "context": timeline.context, "before": before, "value": after})
    if verbose:
        invocation.output.line(f"{name} went from {before} to {after}" if after > before else f"{name} is at {after} already")
