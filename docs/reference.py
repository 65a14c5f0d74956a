"""What the documentation says of the commands and of the configuration, as it stands in the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any, Final

import click

from fencebroker.cli import main as fencectl
from fencebroker.limits import Limits
from fencebrokerd.cli import cli as fencebrokerd
from fencebrokerd.cli import toml
from fencebrokerd.config import POLICY, QUOTAS, Config, settings

__all__ = ["configuration_file", "keys", "options", "own_quotas", "policy", "reasons", "verbs"]

#: What stands in the file for a key that has no default.
EXAMPLES: Final = {"listen": '"/run/fencebroker/broker.sock"', "allow_users": '["ada", 1001]', "allow_groups": '["video"]'}


# -- the configuration


def reasons(cls: type[Any]) -> dict[str, str]:
    """Read what each field means where it stands: in the ``#:`` comment above it.  A field without one shares that above it."""
    found: dict[str, str] = {}
    reason = ""
    comment: list[str] = []
    for line in map(str.strip, inspect.getsource(cls).splitlines()):
        if line.startswith("#:"):
            comment.append(line.removeprefix("#:").strip().replace("``", "`"))
        elif field := re.match(r"(\w+): [^=]+ =", line):
            if comment:
                reason = " ".join(comment)
            found[field[1]] = reason
            comment = []
    return found


def fields(names: Iterable[str]) -> list[dataclasses.Field[Any]]:
    """Those keys."""
    known = {field.name: field for field in dataclasses.fields(Config)}
    return [known[name] for name in names]


def outside() -> list[dataclasses.Field[Any]]:
    """The keys outside of all tables."""
    return fields(name for name in settings() if name not in POLICY)


def configurable() -> list[dataclasses.Field[Any]]:
    """The keys of the table [limits]."""
    return [field for field in dataclasses.fields(Limits) if not field.name.startswith("packet_")]


def _default(field: dataclasses.Field[Any]) -> str:
    return EXAMPLES[field.name] if field.default is None else toml(field.name, field.default).replace("'", '"')


def configuration_file() -> str:
    """The file that is installed: every key with its meaning and its default, switched off."""
    lines = [
        "# Configuration of the system's fence broker; see fencebroker.toml(5).",
        "#",
        "# Every key is here with its default, switched off, except for who is served; one without a default has an example.",
        "# After a change: fencebrokerd --check-config, then systemctl reload fencebroker.",
        "",
    ]
    meanings = reasons(Config)
    for field in outside():
        lines += _commented(meanings[field.name])
        lines += [f"#{field.name} = {_default(field)}", ""]
    lines += [*_commented("Who is served.  Root and the broker's own user always are."), "[policy]", ""]
    for field in fields(POLICY):
        lines += _commented(meanings[field.name])
        if field.name == "allow_groups":
            lines += ["# Those who may connect to the socket as it is installed; nobody else is served, whatever becomes of the socket."]
            lines += ['allow_groups = ["fencebroker"]', ""]
        else:
            lines += [f"#{field.name} = {_default(field)}", ""]
    lines += [*_commented("What one user may have that others may not, by name or uid, in a table for each."), "#[policy.quotas.ada]"]
    lines += ["#timelines_per_uid = 4096", ""]
    lines += [*_commented("How much there may be.  A value must be above 0."), "[limits]", ""]
    meanings, said = reasons(Limits), ""
    for field in configurable():
        if meanings[field.name] != said:
            said = meanings[field.name]
            lines += [] if lines[-1] == "" else [""]
            lines += _commented(said)
        lines.append(f"#{field.name} = {_default(field)}")
    return "\n".join(lines) + "\n"


def _commented(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text.replace("`", ""), 98)]


def keys() -> str:
    """The keys outside of all tables, as a list."""
    return _keys(outside())


def policy() -> str:
    """The keys of [policy], as a list."""
    return _keys(fields(POLICY))


def own_quotas() -> str:
    """The limits that one user can have."""
    return "\n" + "".join(f"- `{name}`\n" for name in QUOTAS) + "\n"


def _keys(chosen: Iterable[dataclasses.Field[Any]]) -> str:
    meanings = reasons(Config)
    items = []
    for field in chosen:
        default = "Not set by default" if field.default is None else f"Default: `{_default(field)}`"
        items.append(f"- `{field.name}`\n  {meanings[field.name]}\n  {default}.\n")
    return "\n" + "".join(items) + "\n"


# -- the commands


def options() -> str:
    """The options of fencebrokerd, as a list."""
    with click.Context(fencebrokerd, info_name="fencebrokerd") as ctx:
        return "\n" + _options(fencebrokerd, ctx) + "\n"


def verbs() -> str:
    """How each verb of fencectl is called, and its options."""
    parts = []
    for name, verb in fencectl.verbs().items():
        with click.Context(verb, info_name=f"fencectl {name}") as ctx:
            usage = " ".join(["fencectl", name, *verb.collect_usage_pieces(ctx)])
            parts.append(f"### {name}\n\n```\n{usage}\n```\n\n{_options(verb, ctx)}")
    return "\n".join(parts)


def _options(command: click.Command, ctx: click.Context) -> str:
    items = []
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if isinstance(parameter, click.Option) and record is not None:
            items.append(f"- `{record[0]}`\n  {_markdown(record[1])}\n")
    return "".join(items)


def _markdown(text: str) -> str:
    """A help text has no markup: what could be taken for some is escaped."""
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", text)
