"""Fail unless a wheel holds exactly what it should: ``python .ci/check_wheel.py dist/fencebroker-0.1.0-py3-none-any.whl``.

A third top-level name would be installed beside everybody else's packages (``tests``, ``examples`` and ``daemon`` are the
likely accidents), and a missing ``py.typed`` would hide the types of a whole package.
"""

from __future__ import annotations

import re
import sys
import zipfile

EXPECTED = {"fencebroker", "fencebrokerd"}


def findings(names: list[str]) -> list[str]:
    """Return what is wrong with a wheel that holds the files ``names``."""
    tops = {name.partition("/")[0] for name in names}
    metadata = {top for top in tops if re.fullmatch(r"fencebroker-[^/]+\.(dist-info|data)", top)}
    found = [f"unexpected top-level name: {top}" for top in sorted(tops - metadata - EXPECTED)]
    found += [f"missing package: {top}" for top in sorted(EXPECTED - tops)]
    found += [f"missing file: {top}/py.typed" for top in sorted(EXPECTED) if f"{top}/py.typed" not in names]
    found += [f"should not be shipped: {name}" for name in names if "__pycache__" in name or name.endswith((".pyc", ".so"))]
    if not any(re.search(r"\.dist-info/licenses/LICENSE$", name) for name in names):
        found.append("missing file: LICENSE")
    return found


def main() -> None:
    """Check the wheels named on the command line."""
    if len(sys.argv) < 2:
        sys.exit("usage: python .ci/check_wheel.py WHEEL...")
    for path in sys.argv[1:]:
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
        found = findings(names)
        if found:
            sys.exit("\n".join(f"{path}: {text}" for text in found))
        print(f"{path}: {len(names)} files, top-level names {', '.join(sorted(EXPECTED))}")


if __name__ == "__main__":
    main()
