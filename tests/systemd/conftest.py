"""What runs on a machine of its own is not for this one; and only a checkout can be installed from."""

from __future__ import annotations

from pathlib import Path

collect_ignore = ["inside"]
if not (Path(__file__).parents[2] / "packaging").is_dir():
    collect_ignore.append("test_install.py")
