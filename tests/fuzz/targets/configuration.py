"""The configuration file: whatever stands in it, it is taken, or refused with one line that names the file."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Final, Self

from fencebrokerd.config import ConfigError, load
from tests.fuzz.mutation import CORPUS, EDGES, TEXTS

__all__ = ["NAME", "Target", "fresh"]

NAME: Final = "configuration"
_LINES: Final = [
    line.lstrip("#").strip()
    for path in sorted((CORPUS / NAME).iterdir())
    for line in path.read_text("utf-8", errors="replace").splitlines()
]


def _word(dice: random.Random) -> str:
    match dice.randrange(6):
        case 0:
            return repr(dice.choice(TEXTS))
        case 1:
            return f"[{', '.join(_word(dice) for _ in range(dice.randrange(3)))}]"
        case 2:
            return dice.choice(("true", "false", "inf", "nan", "-inf", "1e400", "1979-05-27", "{}", "0o600", "0x10"))
    return str(dice.choice(EDGES))


def fresh(dice: random.Random) -> bytes:
    """Lines of real files, some with another value."""
    lines = []
    for line in dice.sample(_LINES, min(len(_LINES), dice.randrange(1, 12))):
        key, equals, _ = line.partition("=")
        lines.append(f"{key}= {_word(dice)}" if equals and dice.random() < 0.6 else line)
    return "\n".join(lines).encode(errors="replace")


class Target:
    """One file, written and read again and again."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "fencebroker.toml"
        return self

    def __exit__(self, *exc: object) -> None:
        self._folder.cleanup()

    def run(self, data: bytes) -> None:
        """Read one file."""
        self._file.write_bytes(data)
        try:
            config = load({}, {}, self._file)
        except ConfigError as err:
            text = str(err)
        else:
            config.serves(1000, [1000])
            return
        assert str(self._file) in text
        assert text.isprintable(), f"not one printable line: {text}"
