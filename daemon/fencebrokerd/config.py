"""One frozen configuration: from arguments, then the environment, then a TOML file, then defaults.

A key is written alike everywhere: ``--idle-exit 30``, ``FENCEBROKERD_IDLE_EXIT=30``, ``idle_exit = 30``.  Limits stand in the file's table
``[limits]`` under the names of ``fencebroker.model.Limits``.
"""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fencebroker.model import Limits

__all__ = ["Config", "ConfigError", "load"]

LEVELS = ("error", "warning", "notice", "info", "debug")


class ConfigError(ValueError):
    """The configuration is wrong; the text names the source, the key, what was wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class Config:
    """What the daemon was told."""

    #: Where to listen.  Not set: the sockets that a service manager passes, else the place of this kind of broker.
    listen: Path | None = None
    #: Permission bits of the socket that ``listen`` makes.
    socket_mode: int = 0o600
    #: Leave after so many seconds without a client, a timeline or an active fence; 0: never.
    idle_exit: float = 0.0
    #: Lines of the log less important than this are left out: error, warning, notice, info, debug.
    log_level: str = "notice"
    #: Serve clients whose uid is not mapped into the broker's user namespace; they all look like uid 65534.
    allow_overflow_uid: bool = False
    #: Users whom the broker serves, by name or uid, beside root and its own.  Neither this nor ``allow_groups`` set: whoever can connect.
    allow_users: tuple[int, ...] | None = None
    #: Groups whose members the broker serves, by name or gid.
    allow_groups: tuple[int, ...] | None = None
    limits: Limits = field(default_factory=Limits)

    def serves(self, uid: int, groups: Collection[int]) -> bool:
        """Whether the two lists let a user in; root and the broker's own user are the caller's to let in."""
        if self.allow_users is None and self.allow_groups is None:
            return True
        return uid in (self.allow_users or ()) or not set(groups).isdisjoint(self.allow_groups or ())


def load(arguments: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> Config:
    """Build the configuration; ConfigError for anything that does not fit."""
    values: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    if file is not None:
        values, limits = _read(file)
    for key in _fields(Config):
        text = environment.get(f"FENCEBROKERD_{key.upper()}")
        if text is not None and key != "limits":
            values[key] = _value(f"FENCEBROKERD_{key.upper()}", key, text)
    for key, value in arguments.items():
        if value is not None:
            values[key] = _value(f"--{key.replace('_', '-')}", key, value)
    return Config(**values, limits=Limits(**limits))


def _fields(kind: type) -> dict[str, Any]:
    return {f.name: f for f in dataclasses.fields(kind)}


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with file.open("rb") as stream:
            table = tomllib.load(stream)
    except OSError as err:
        raise ConfigError(f"{file}: cannot be read: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"{file}: not valid TOML: {err}") from err
    limits = table.pop("limits", {})
    if not isinstance(limits, dict):
        raise ConfigError(f"{file}: limits must be a table [limits]")
    known = sorted(_fields(Config).keys() - {"limits"})
    for key in table:
        if key not in known:
            raise ConfigError(f"{file}: unknown key {key!r}; known are {', '.join(known)} and the table [limits]")
    values = {key: _value(f"{file}: {key}", key, value) for key, value in table.items()}
    return values, {key: _limit(f"{file}: limits.{key}", key, value) for key, value in limits.items()}


def _limit(where: str, key: str, value: object) -> int | float:
    default = _fields(Limits).get(key)
    if default is None:
        raise ConfigError(f"{where}: unknown limit; known are {', '.join(sorted(_fields(Limits)))}")
    if key in ("packet_bytes", "packet_descriptors"):
        raise ConfigError(f"{where}: part of the protocol, cannot be configured")
    wanted = (int, float) if isinstance(default.default, float) else (int,)
    if isinstance(value, bool) or not isinstance(value, wanted) or not 0 < value < 1e12:
        raise ConfigError(f"{where}: must be a positive {'number' if float in wanted else 'integer'}, not {value!r}")
    if key == "sync_files_share" and value > 1:
        raise ConfigError(f"{where}: must be at most 1, not {value!r}")
    assert isinstance(value, (int, float))
    return value


def _value(where: str, key: str, value: object) -> object:
    match key:
        case "listen":
            if not isinstance(value, (str, Path)) or not str(value):
                raise ConfigError(f"{where}: must be a path, not {value!r}")
            path = Path(value)
            if "\0" in str(path):
                raise ConfigError(f"{where}: must not contain a NUL character: {str(path)!r}")
            if len(os.fsencode(path)) > 100:
                raise ConfigError(f"{where}: the path of a Unix socket may have about 100 bytes; {str(path)!r} is longer")
            return path
        case "socket_mode":
            return _mode(where, value)
        case "idle_exit":
            return _seconds(where, value)
        case "log_level":
            if value not in LEVELS:
                raise ConfigError(f"{where}: must be one of {', '.join(LEVELS)}, not {value!r}")
            return value
        case "allow_overflow_uid":
            return _boolean(where, value)
        case "allow_users":
            return _ids(where, value, "users", lambda name: pwd.getpwnam(name).pw_uid)
        case "allow_groups":
            return _ids(where, value, "groups", lambda name: grp.getgrnam(name).gr_gid)
    raise AssertionError(f"no rule for the key {key}")


def _mode(where: str, value: object) -> int:
    try:
        mode = int(value, 8) if isinstance(value, str) else value
    except ValueError:
        mode = None
    if type(mode) is not int or not 0 <= mode <= 0o777:
        raise ConfigError(f"{where}: must be permission bits such as 0600, not {value!r}")
    return mode


def _seconds(where: str, value: object) -> float:
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else -1.0
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise ConfigError(f"{where}: must be a number of seconds, 0 or more, not {value!r}")
    return seconds


def _boolean(where: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("1", "true", "yes", "0", "false", "no"):
        return value.lower() in ("1", "true", "yes")
    raise ConfigError(f"{where}: must be true or false, not {value!r}")


def _ids(where: str, value: object, what: str, number_of: Callable[[str], int]) -> tuple[int, ...]:
    if isinstance(value, str):  # from the environment
        value = [int(word) if word.isdigit() else word for word in value.replace(",", " ").split()]
    if not isinstance(value, list):
        raise ConfigError(f"{where}: must be a list of {what}, by name or number, not {value!r}")
    ids = []
    for item in value:
        if type(item) is int and 0 <= item < 2**32 - 1:
            ids.append(item)
        elif isinstance(item, str):
            try:
                ids.append(number_of(item))
            except (KeyError, ValueError):
                raise ConfigError(f"{where}: this machine knows no {what.removesuffix('s')} {item!r}") from None
        else:
            raise ConfigError(f"{where}: must hold names or numbers of {what}, not {item!r}")
    return tuple(ids)
