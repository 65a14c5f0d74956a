"""What the three stages have in common: their options, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

import fencebroker as fb
from examples.pipeline import link
from examples.pipeline.clip import ClipError
from examples.pipeline.link import Link
from examples.pipeline.ports import Broken
from examples.pipeline.report import Report

#: The exit status of a stage whose neighbour failed it, and that said so in a report.
ENDED_EARLY = 3

listen_option = click.option("--listen", "listen_path", required=True, metavar="PATH", help="Unix socket to wait for the producer at.")
connect_option = click.option("--connect", "connect_path", required=True, metavar="PATH", help="Unix socket of the consumer.")
without_fences_option = click.option("--without-fences", is_flag=True, help="Do not wait for any fence.")


def accept_producer(stage: str, path: str) -> Link:
    """Listen at ``path``, tell the launcher, and return the connection of whoever comes."""
    with link.listen(path) as listener:
        Report(stage, "listening").send()
        return Link.accept(listener)


@contextmanager
def reporting_failure(stage: str) -> Iterator[None]:
    """End the process in order, whatever goes wrong."""
    try:
        yield
    except Broken as error:
        Report(stage, "broken", error.subject, error.sequence, error.at_ns, error.error, str(error)).send()
        sys.exit(ENDED_EARLY)
    except (fb.BrokerUnavailable, fb.QuotaExceeded, ClipError, OSError) as error:
        _fail(stage, error)


def _fail(stage: str, error: Exception) -> NoReturn:
    click.echo(f"{stage}: {error}", err=True)
    sys.exit(1)
