"""One frozen configuration: from arguments, then the environment, then a TOML file, then defaults.

A key is written alike everywhere: ``--idle-exit 30``, ``FENCEBROKERD_IDLE_EXIT=30``, ``idle_exit = 30``.  In the file, limits stand in the table
``[limits]`` under the names of ``fencebroker.model.Limits``, who is served in ``[policy]``, and what a user may have that others may not in
``[policy.quotas.USER]``.
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
from typing import Any, Final

from fencebroker.limits import Limits
from fencebroker.model import printable

__all__ = ["POLICY", "QUOTAS", "Config", "ConfigError", "load", "settings"]

LEVELS = ("error", "warning", "notice", "info", "debug")
#: The keys of the table [policy].
POLICY: Final = ("allow_overflow_uid", "allow_users", "allow_groups")
#: The limits that one user can have of its own.
QUOTAS: Final = (
    "sessions_per_uid",
    "timelines_per_uid",
    "minters_per_uid",
    "sync_files_share",
    "members_per_uid",
    "retained_records",
    "subscriptions_per_uid",
    "unread_per_uid",
    "closing_per_uid",
)


class ConfigError(ValueError):
    """The configuration is wrong; the text names the source, the key, what was wrong and what would be right, and is safe for a terminal."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


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
    #: Limits that some users have of their own, by uid: those whose name ends in ``_per_uid`` and a few more (``QUOTAS``).
    quotas: Mapping[int, Mapping[str, int | float]] = field(default_factory=dict)

    def limits_of_users(self) -> dict[int, Limits]:
        """The limits of each user who has some of its own; the others are everybody's."""
        return {uid: dataclasses.replace(self.limits, **own) for uid, own in self.quotas.items()}  # type: ignore[arg-type]

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
    for key in settings():
        text = environment.get(f"FENCEBROKERD_{key.upper()}")
        if text is not None:
            values[key] = _value(f"FENCEBROKERD_{key.upper()}", key, text)
    for key, value in arguments.items():
        if value is not None:
            values[key] = _value(f"--{key.replace('_', '-')}", key, value)
    return Config(**values, limits=Limits(**limits))


def settings() -> list[str]:
    """The keys that are one value each: everything but the tables of limits."""
    return [key for key in _fields(Config) if key not in ("limits", "quotas")]


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
    limits, policy = _table(file, table, "limits"), _table(file, table, "policy")
    quotas = _table(file, policy, "quotas", "policy.")
    known = sorted(set(settings()) - set(POLICY))
    for key in table:
        if key in POLICY:
            raise ConfigError(f"{file}: {key} belongs into the table [policy]")
        if key not in known:
            raise ConfigError(f"{file}: unknown key {key!r}; known are {', '.join(known)} and the tables [limits] and [policy]")
    for key in policy:
        if key not in POLICY:
            raise ConfigError(f"{file}: policy.{key}: unknown key; known are {', '.join(POLICY)} and the tables [policy.quotas.USER]")
    values = {key: _value(f"{file}: {key}", key, value) for key, value in table.items()}
    values |= {key: _value(f"{file}: policy.{key}", key, value) for key, value in policy.items()}
    own_limits: dict[int, dict[str, int | float]] = {}
    for user in quotas:
        uid = _uid(f"{file}: policy.quotas.{user}", user)
        own = _table(file, quotas, user, "policy.quotas.", pop=False)
        own_limits[uid] = {key: _quota(f"{file}: policy.quotas.{user}.{key}", key, value) for key, value in own.items()}
    values["quotas"] = own_limits
    return values, {key: _limit(f"{file}: limits.{key}", key, value) for key, value in limits.items()}


def _table(file: Path, table: dict[str, Any], key: str, prefix: str = "", *, pop: bool = True) -> dict[str, Any]:
    found = table.pop(key, {}) if pop else table[key]
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: {prefix}{key} must be a table [{prefix}{key}]")
    return found


def _uid(where: str, user: str) -> int:
    if user.isascii() and user.isdigit() and len(user) <= 10:
        return _ids(where, [int(user)], "users", int)[0]
    return _ids(where, [user], "users", lambda name: pwd.getpwnam(name).pw_uid)[0]


def _quota(where: str, key: str, value: object) -> int | float:
    if key not in QUOTAS:
        raise ConfigError(f"{where}: no limit of one user; those are {', '.join(QUOTAS)}")
    return _limit(where, key, value)


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
