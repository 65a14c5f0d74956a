"""``status``: is a broker there, and how is it?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

import click

from fencebroker.cli import names
from fencebroker.cli.command import Invocation, Verb, answer_within, asks_broker, parsed, seconds, wants_json
from fencebroker.cli.render import facts, span

__all__ = ["status"]

#: What a person sees in lines of its own; whatever else the broker tells comes after them under the broker's word for it.
ARRANGED: Final = frozenset(
    {
        "socket", "pid", "version", "uptime_ns", "uid", "descriptors", "descriptor_limit", "descriptor_reserve", "keeper_pid", "keeper_version",
        "generation", "recoveries", "reloads", "last_reason", "journal_bytes", "open_descriptors", "known_descriptors",
    }
)  # fmt: skip

EXAMPLE = """\
$ fencectl status
broker          pid 4187, fencebroker 0.1.0, user ada
socket          /run/user/1000/fencebroker/broker.sock
up for          12 min
keeper          pid 4186, fencebroker 0.1.0
generation      1, after 0 recoveries and 0 reloads
journal         1489 bytes
sessions        3
timelines       1
fences          4
sync files      3
active fences   3
signalled       1
counted         everybody's
descriptors     11 in use, limit 19985, 64 of them kept for accepting and inspecting
in the process  25 open, 25 accounted for
"""


@click.command(cls=Verb, example=EXAMPLE, short_help="Is a broker there, and how is it?")
@click.option(
    "--timeout",
    metavar="SECONDS",
    callback=parsed(seconds),
    default="5",
    show_default=True,
    help="A broker that does not answer for so long is none.",
)
@asks_broker
@wants_json
@click.pass_obj
def status(invocation: Invocation, timeout: float) -> None:
    """Show the broker: who it is, what there is, what its limits are.

    As a health check: exit code 0 when a broker answers, 4 when none does. Counts are of what you may see; the connection that asks is
    one of the sessions.
    """
    with invocation.connect(timeout) as broker, answer_within(timeout):
        found: dict[str, Any] = {"socket": str(broker._connection.path), **broker._status()}
    invocation.output.json(found)
    sees_all = os.getuid() in (0, found["uid"])
    pairs = [
        ("broker", f"pid {found['pid']}, fencebroker {found['version']}, user {names.user(found['uid'])}"),
        ("socket", found["socket"]),
        ("up for", span(found["uptime_ns"])),
        *_kept(found),
        *((name.replace("_", " "), str(value)) for name, value in found.items() if name not in ARRANGED),
        ("counted", "everybody's" if sees_all else "yours only"),
        ("descriptors", _descriptors(found)),
    ]
    if "open_descriptors" in found:
        pairs.append(("in the process", f"{found['open_descriptors']} open, {found['known_descriptors']} accounted for"))
    invocation.output.tables(facts("", pairs))


def _kept(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Who starts the next broker, and how often that was needed."""
    if "generation" not in found:
        return
    kept = found["keeper_pid"] is not None
    yield "keeper", f"pid {found['keeper_pid']}, fencebroker {found['keeper_version']}" if kept else "none: if the broker dies, all is lost"
    text = f"{found['generation']}, after {found['recoveries']} recoveries and {found['reloads']} reloads"
    yield "generation", f"{text}; the last one that was replaced: {found['last_reason']}" if found["last_reason"] else text
    yield "journal", f"{found['journal_bytes']} bytes"


def _descriptors(found: dict[str, Any]) -> str:
    limit = f"limit {found['descriptor_limit']}, {found['descriptor_reserve']} of them kept for accepting and inspecting"
    return f"{found['descriptors']} in use, {limit}" if "descriptors" in found else limit
