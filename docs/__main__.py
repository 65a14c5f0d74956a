"""Write the blocks of the documentation that follow from the code, and its pictures.

    python -m docs            write them
    python -m docs --check    write nothing; exit code 1 if a file is not current

Run it from the project's folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docs.pages import PAGES, filled
from docs.picture import PICTURES


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    wanted: dict[Path, str] = {page: filled(page.read_text("utf-8")) for page in PAGES}
    wanted |= {path: draw() for path, draw in PICTURES.items()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if arguments:
            print(f"{path}: not current; write it with: python -m docs")
        else:
            path.write_text(wanted[path], "utf-8")
            print(f"{path}: written")
    return 1 if stale and arguments else 0


sys.exit(main(sys.argv[1:]))
