"""Where brokers listen and where a per-user broker keeps its log.  Only names are worked out here; nothing is opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["SYSTEM_SOCKET", "log_path", "runtime_dir", "user_socket"]

SYSTEM_SOCKET: Final = Path("/run/fencebroker/broker.sock")


def runtime_dir() -> Path:
    """Return the folder of the per-user broker's socket, made with mode 0700 if it is missing.

    ``$XDG_RUNTIME_DIR/fencebroker``, else ``/run/user/UID/fencebroker``, else ``/tmp/fencebroker-UID``.  PermissionError when it belongs to
    somebody else or others may write in it.
    """
    uid = os.getuid()
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_absolute():
        _check_base(Path(base), uid)
        path = Path(base) / "fencebroker"
    elif (standard := Path(f"/run/user/{uid}")).is_dir() and standard.stat().st_uid == uid:
        path = standard / "fencebroker"
    else:
        path = Path(f"/tmp/fencebroker-{uid}")  # noqa: S108 - owner and mode are checked below
    path.mkdir(mode=0o700, parents=False, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o022:
        raise PermissionError(f"{path} must be a folder of uid {uid} that nobody else may write to; remove it or set XDG_RUNTIME_DIR")
    return path


def _check_base(base: Path, uid: int) -> None:
    cure = "unset it, or name a broker with FENCEBROKER_SOCKET"
    try:
        owner = base.stat().st_uid
    except OSError as err:
        raise FileNotFoundError(err.errno, f"$XDG_RUNTIME_DIR cannot be used ({err.strerror}); {cure}", str(base)) from err
    if owner != uid:
        raise PermissionError(f"$XDG_RUNTIME_DIR ({base}) belongs to uid {owner}, not to uid {uid}, as after su; {cure}")


def user_socket() -> Path:
    """Return where this user's broker listens."""
    return runtime_dir() / "broker.sock"


def log_path() -> Path:
    """Return where a per-user broker that was started on demand logs: ``$XDG_STATE_HOME/fencebroker/broker.log``."""
    state = os.environ.get("XDG_STATE_HOME")
    base = Path(state) if state and Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "fencebroker" / "broker.log"
