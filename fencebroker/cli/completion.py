"""Completion in the shell: names of timelines and points, as the broker has them now.

Facts
  What is offered ends up on a command line, and names come from other processes, also of other users.  So only names are offered that mean
  nothing to a shell.
  bash breaks words at ``@``, ``:`` and ``=`` too, and puts only what comes after the last of them in place of what was typed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from fencebroker import Broker, BrokerUnavailable
from fencebroker.cli import names
from fencebroker.cli.catalogue import list_rows
from fencebroker.cli.command import Failure, Invocation, answer_within, files, in_command
from fencebroker.rows import TimelineRow

__all__ = ["Bash", "complete_points", "complete_targets", "complete_timelines"]

#: Whoever pressed the key waits.
ANSWER_SECONDS: Final = 1.0
_PLAIN: Final = frozenset("@/._+-")


def complete_timelines(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """For ``shell_complete=`` of an argument that is a timeline's name."""
    return _offer(ctx, incomplete, lambda row: [names.timeline(row)])


def complete_points(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """For ``shell_complete=`` of an argument that is a point: of each timeline the next one, and the highest that was exported."""
    return _offer(
        ctx, incomplete, lambda row: [f"{names.timeline(row)}@{seqno}" for seqno in sorted({row.value + 1, row.highest}) if seqno]
    )


def complete_targets(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """For ``shell_complete=`` of an argument that may be a timeline, a point, and other things that are not offered."""
    return complete_timelines(ctx, parameter, incomplete) + complete_points(ctx, parameter, incomplete)


def _offer(ctx: click.Context, incomplete: str, words_of: Callable[[TimelineRow], list[str]]) -> list[CompletionItem[str]]:
    if in_command(ctx):
        return files(incomplete)
    found: list[str] = []
    with (
        contextlib.suppress(BrokerUnavailable, Failure, OSError),
        ctx.ensure_object(Invocation).connect(ANSWER_SECONDS) as broker,
        answer_within(ANSWER_SECONDS),
    ):
        for row in _timelines(broker):
            found += words_of(row)
    return [CompletionItem(word) for word in sorted(found) if word.startswith(incomplete) and _is_plain(word)]


def _timelines(broker: Broker) -> Iterator[TimelineRow]:
    for row in list_rows(broker, "timelines"):
        if isinstance(row, TimelineRow) and row.name is not None:
            yield row


def _is_plain(word: str) -> bool:
    return not word.startswith("-") and all(c.isalnum() or c in _PLAIN for c in word)


class Bash(BashComplete):
    """As click's, but for words that hold an ``@``, and with what is offered kept from being expanded."""

    source_template = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} answer kind word cut=''
    answer=$(env COMP_WORDS="$line" COMP_CWORD= %(complete_var)s=bash_complete "$1")
    local typed=${line##*[[:space:]]}
    [[ $typed == --*=* ]] && typed=${typed#*=}
    [[ $typed == *[@:=]* ]] && cut=${typed%%"${typed##*[@:=]}"}
    COMPREPLY=()
    while IFS=, read -r kind word; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${word#"$cut"}") ;;
        esac
    done <<<"$answer"
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one to complete, and that one."""
        line = os.environ["COMP_WORDS"]
        words: list[Any] = split_arg_string(line)
        incomplete = words.pop() if len(words) > 1 and not line[-1:].isspace() else ""
        return words[1:], incomplete


add_completion_class(Bash)
