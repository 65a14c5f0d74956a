"""An example without a test is an example that is broken; it only does not know it yet."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__)
_EXAMPLES = _HERE.parents[2] / "examples"


def test_every_example_is_run_by_a_test() -> None:
    programs = [path.name for path in _EXAMPLES.iterdir() if path.suffix in {".py", ".c", ".sh"}]
    packages = [f"examples.{path.name}" for path in _EXAMPLES.iterdir() if (path / "__main__.py").exists()]
    assert len(programs) >= 8
    assert packages
    tests = "".join(path.read_text() for path in _HERE.parent.glob("test_*.py") if path != _HERE)
    untested = [name for name in [*programs, *packages] if f'"{name}"' not in tests]
    assert not untested, f"no test in {_HERE.parent} runs {', '.join(untested)}"


def test_the_readme_lists_every_example() -> None:
    readme = (_EXAMPLES / "README.md").read_text()
    names = [path.name for path in _EXAMPLES.iterdir() if path.suffix in {".py", ".c", ".sh"} or (path / "__main__.py").exists()]
    missing = [name for name in names if f"]({name})" not in readme]
    assert not missing, f"examples/README.md does not mention {', '.join(missing)}"
