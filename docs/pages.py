"""The blocks of the pages that follow from the code.

A page marks where a block goes, ``<!-- begin: errors -->`` to ``<!-- end -->``, and everything around it is written by hand.
"""

from __future__ import annotations

import dataclasses
import errno
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from docs.golden import conversation
from docs.reference import keys, options, own_quotas, policy, reasons
from fencebroker import ring, wire
from fencebroker.errors import REFUSALS
from fencebroker.fds import OK_WORD, status_word
from fencebroker.limits import Limits
from fencebroker.rows import ROWS

__all__ = ["PAGES", "filled"]

HERE: Final = Path(__file__).parent
PAGES: Final = tuple(HERE / name for name in ("protocol.md", "fencebrokerd.md", "configuration.md"))

_BLOCK: Final = re.compile(r"(<!-- begin: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """Return ``page`` with every block as it should be now; KeyError for a block that nobody writes."""
    return _BLOCK.sub(lambda found: found[1] + _block(found[2]) + found[3], page)


def _block(name: str) -> str:
    kind, _, argument = name.partition(" ")
    if kind == "request":
        return _request(argument)
    if kind == "signal":
        return _signal(argument)
    if kind == "row":
        return _row(argument)
    return WRITERS[name]()


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n" + "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines) + "\n"


def _signature(line: str, spec: wire.Spec) -> str:
    table = _table(("field", "must be"), ((f"`{field.name}`", field.what) for field in spec.fields)) if spec.fields else "\n"
    return f"\n```\n{line}\n```\n{table}"


def _request(name: str) -> str:
    op, spec = next((op, spec) for op, spec in wire.REQUESTS.items() if spec.name == name)
    return _signature(f"→ [{', '.join(['serial', str(op), *(field.name for field in spec.fields)])}]{_with(spec)}", spec)


def _with(spec: wire.Spec) -> str:
    if spec.descriptors is None:
        return "  + a descriptor for each nil " + ("among the refs" if spec.name == "merge" else "ref")
    return "  + 1 descriptor" if spec.descriptors else ""


def _signal(name: str) -> str:
    op, spec = next((op, spec) for op, spec in wire.TIMELINE_OPS.items() if spec.name == name)
    return _signature(f"→ [{', '.join(['holder', 'counter', str(op), *(field.name for field in spec.fields)])}]", spec)


def _row(kind: str) -> str:
    cls = ROWS[kind]
    # What a column means stands beside it, in a ``#:`` comment.
    meanings = dict(re.findall(r"^    (\w+): [^#\n]+#: (.*)$", inspect.getsource(cls), re.MULTILINE))
    types = typing.get_type_hints(cls)
    return _table(
        ("column", "type", "meaning"),
        ((name, _type(name, types[name]), meanings.get(name, "").replace("None", "nil")) for name in cls._fields),
    )


def _type(name: str, hint: object) -> str:
    if name == "status":
        return "status"
    if name.endswith("_ns") and name != "expiry_ns":
        return "time" if hint is int else "time or nil"
    return "u64" if hint is int else TYPES.get(str(hint)) or typing.cast("type", hint).__name__


#: Type hints as the page says them.
TYPES: Final = {
    "int | None": "u64 or nil",
    "str | None": "str or nil",
    "fencebroker.model.ProcessInfo | None": "process or nil",
    "tuple[int, ...]": "list of u64",
}


def _limits() -> str:
    why = reasons(Limits)
    rows = []
    for field in dataclasses.fields(Limits):
        fixed = "fixed" if field.name.startswith("packet_") else "yes"
        rows.append((f"`{field.name}`", f"{field.default:,}", fixed, why[field.name]))
    return _table(("limit", "default", "configurable", "why"), rows)


def _errors() -> str:
    rows = ((f"`{errno.errorcode[error]}` {error}", when, cure) for error, (when, cure) in REFUSALS.items())
    return _table(("errno", "when", "what helps"), rows)


def _words() -> str:
    rows = [("not signalled", "0", "0000000000000000", "no", "yes"), ("OK", f"{OK_WORD}", f"{OK_WORD:016x}", "yes", "no")]
    for error in (errno.ENOENT, errno.EIO, errno.ETIME, errno.ECANCELED):
        word = status_word(-error)
        rows.append((f"`{errno.errorcode[error]}` {error}, {os.strerror(error)}", f"{word}", f"{word:016x}", "yes", "yes"))
    return _table(("status", "value written", "`eventfd-count`", "POLLIN", "POLLOUT"), rows)


def _golden() -> str:
    return "\n```\n" + "\n".join(packet.text for packet in conversation()) + "\n```\n\n"


def _words_of(page: bytearray) -> Iterator[tuple[int, str]]:
    """The words of a page that are not 0: where, and their bytes."""
    for at in range(0, len(page), 8):
        if any(page[at : at + 8]):
            yield at, page[at : at + 8].hex(" ")


def _ring() -> str:
    """A producer's page after a few commits, and the broker's words after it has drained them."""
    page = bytearray(ring.RING_BYTES)
    writer, reader = ring.Writer(memoryview(page)), ring.Reader(memoryview(page))
    moment = 3_600_000_000_000
    writer.commit(ring.ADVANCE, 7, 0, moment)
    writer.commit(ring.INC, 1, 0, moment + 1_000_000)
    writer.commit(ring.FAIL, 9, errno.EIO, moment + 2_000_000)
    writer.commit(ring.CLOSE, 0, 0, moment + 3_000_000)
    words = dict(_words_of(page))
    lines = ["head, after four entries", f"    {0:4}  {words[0]}"]
    for i, what in enumerate(("advance 7", "inc 1", f"fail 9 with EIO ({errno.EIO})", "close")):
        start = 256 + i * ring.ENTRY_BYTES
        lines += [f"entry {i + 1}: {what}", *(f"    {at:4}  {words.get(at, ' '.join(['00'] * 8))}" for at in range(start, start + 32, 8))]
    reader.take(reader.read(reader.head(), moment + 4_000_000))
    reader.free()
    lines += ["tail, when the broker has taken them", f"    {64:4}  {dict(_words_of(page))[64]}"]
    return "\n```\n" + "\n".join(lines) + "\n```\n\n"


WRITERS: Final[dict[str, Callable[[], str]]] = {
    "limits": _limits,
    "errors": _errors,
    "words": _words,
    "golden": _golden,
    "ring": _ring,
    "keys": keys,
    "own quotas": own_quotas,
    "policy": policy,
    "options": options,
}
