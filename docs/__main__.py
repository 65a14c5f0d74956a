"""Write the blocks of the documentation that follow from the code, its pictures, and the manual pages.

    python -m docs               write the blocks, the pictures and the default configuration
    python -m docs --check       write nothing; exit code 1 if a file is not current
    python -m docs --man FOLDER  write the manual pages there, ready for man

Run it from the project's folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from docs.pages import PAGES, filled
from docs.picture import PICTURES
from docs.reference import configuration_file

CONFIGURATION: Final = Path(__file__).parent / "fencebroker.toml"


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if len(arguments) == 2 and arguments[0] == "--man":
        write_manual(Path(arguments[1]))
        return 0
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    wanted: dict[Path, str] = {page: filled(page.read_text("utf-8")) for page in PAGES}
    wanted |= {path: draw() for path, draw in PICTURES.items()}
    wanted[CONFIGURATION] = configuration_file()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if arguments:
            print(f"{path}: not current; write it with: python -m docs")
        else:
            path.write_text(wanted[path], "utf-8")
            print(f"{path}: written")
    return 1 if stale and arguments else 0


def write_manual(folder: Path) -> None:
    """Write the manual pages, each into its section's folder."""
    from docs.manual import MANUAL, rendered  # it needs a parser of Markdown, which nothing else does

    for page in MANUAL:
        file = folder / f"man{page.section}" / page.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(rendered(page), "utf-8")


sys.exit(main(sys.argv[1:]))
