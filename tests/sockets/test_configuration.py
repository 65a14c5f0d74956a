"""The configuration: each key from each source, which source wins, and what is said of a mistake."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from fencebroker.limits import Limits
from fencebrokerd.config import POLICY, QUOTAS, Config, ConfigError, load

if TYPE_CHECKING:
    from collections.abc import Callable

#: key -> (as an argument or in the environment, in the file, what comes of it), and another value of the same kind.
KEYS: Final[dict[str, list[tuple[str, str, Any]]]] = {
    "listen": [("/run/a", '"/run/a"', Path("/run/a")), ("/run/b", '"/run/b"', Path("/run/b"))],
    "socket_mode": [("0660", "0o660", 0o660), ("666", '"0666"', 0o666)],
    "idle_exit": [("30", "30", 30.0), ("0.5", "0.5", 0.5)],
    "log_level": [("debug", '"debug"', "debug"), ("error", '"error"', "error")],
    "allow_overflow_uid": [("true", "true", True), ("no", "false", False)],
    "allow_users": [("0 1000", '["root", 1000]', (0, 1000)), ("root,7", "[0, 7]", (0, 7))],
    "allow_groups": [("0", "[0]", (0,)), ("", "[]", ())],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "fencebroker.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def line(key: str, value: str) -> str:
    """A key with its table, as the file has it."""
    return f"[policy]\n{key} = {value}" if key in POLICY else f"{key} = {value}"


def wrong(arguments: dict[str, Any] | None = None, environment: dict[str, str] | None = None, file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load(arguments or {}, environment or {}, file)
    return str(error.value)


def test_the_table_has_every_key() -> None:
    assert KEYS.keys() == {f.name for f in dataclasses.fields(Config)} - {"limits", "quotas"}


def test_nothing_said_is_the_defaults() -> None:
    assert load({}, {}, None) == Config()
    assert load(dict.fromkeys(KEYS), {"PATH": "/bin", "FENCEBROKERD_": "x"}, None) == Config()


def test_it_is_frozen() -> None:
    config = load({}, {}, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.listen = Path("/")  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.limits.sessions = 1  # type: ignore[misc]


@pytest.mark.parametrize("key", list(KEYS))
def test_each_key_from_each_source_and_which_wins(write: Callable[[str], Path], key: str) -> None:
    (text, in_file, value), (other, other_in_file, other_value) = KEYS[key]
    variable = f"FENCEBROKERD_{key.upper()}"
    assert getattr(load({key: text}, {}, None), key) == value
    assert getattr(load({}, {variable: text}, None), key) == value
    assert getattr(load({}, {}, write(line(key, in_file))), key) == value
    assert getattr(load({}, {}, write(line(key, other_in_file))), key) == other_value
    file = write(line(key, other_in_file))
    assert getattr(load({}, {variable: text}, file), key) == value, "the environment before the file"
    assert getattr(load({key: other}, {variable: text}, None), key) == other_value, "an argument before the environment"
    assert getattr(load({key: text}, {}, file), key) == value, "an argument before the file"


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Limits)])
def test_every_limit_from_the_file(write: Callable[[str], Path], name: str) -> None:
    default = getattr(Limits(), name)
    value: Any = 0.5 if isinstance(default, float) else default + 1
    file = write(f"[limits]\n{name} = {value}\n")
    if name.startswith("packet_"):
        assert wrong(file=file) == f"{file}: limits.{name}: part of the protocol, cannot be configured"
    else:
        assert load({}, {}, file).limits == dataclasses.replace(Limits(), **{name: value})


WRONG: Final = [
    ("listen", "", "''", "must be a path"),
    ("listen", "x" * 101, f'"{"x" * 101}"', "may have about 100 bytes"),
    ("listen", "/run/a\0b", '"/run/a\\u0000b"', "must not contain a NUL"),
    ("listen", None, "5", "must be a path"),
    ("socket_mode", "0o1000", "0o1000", "must be permission bits"),
    ("socket_mode", "rw", '"rw"', "must be permission bits"),
    ("socket_mode", "-1", "-1", "must be permission bits"),
    ("socket_mode", "", '""', "must be permission bits"),
    ("socket_mode", None, "true", "must be permission bits"),
    ("socket_mode", None, "384.0", "must be permission bits"),
    ("idle_exit", "-1", "-1", "must be a number of seconds"),
    ("idle_exit", "soon", '"soon"', "must be a number of seconds"),
    ("idle_exit", "nan", "nan", "must be a number of seconds"),
    ("idle_exit", "inf", "inf", "must be a number of seconds"),
    ("idle_exit", "1e9", "1000000000", "must be a number of seconds"),
    ("idle_exit", None, "true", "must be a number of seconds"),
    ("log_level", "loud", '"loud"', "must be one of error, warning, notice, info, debug"),
    ("log_level", "", '""', "must be one of"),
    ("log_level", None, "5", "must be one of"),
    ("log_level", None, '["debug"]', "must be one of"),
    ("allow_overflow_uid", "maybe", '"maybe"', "must be true or false"),
    ("allow_overflow_uid", None, "1", "must be true or false"),
    ("allow_users", "no-such-user", '["no-such-user"]', "this machine knows no user 'no-such-user'"),
    ("allow_users", "-1", "[-1]", "user"),
    ("allow_users", None, "[4294967295]", "must hold names or numbers of users"),
    ("allow_users", None, "[true]", "must hold names or numbers of users"),
    ("allow_users", None, "[1.5]", "must hold names or numbers of users"),
    ("allow_users", None, "5", "must be a list of users"),
    ("allow_groups", "no-such-group", '["no-such-group"]', "this machine knows no group 'no-such-group'"),
]


@pytest.mark.parametrize(("key", "text", "in_file", "said"), WRONG)
def test_a_mistake_names_its_source_its_key_and_what_would_be_right(
    write: Callable[[str], Path], key: str, text: str | None, in_file: str, said: str
) -> None:
    if text is not None:
        for message, where in (
            (wrong({key: text}), f"--{key.replace('_', '-')}: "),
            (wrong(environment={f"FENCEBROKERD_{key.upper()}": text}), f"FENCEBROKERD_{key.upper()}: "),
        ):
            assert message.startswith(where)
            assert said in message
    file = write(line(key, in_file))
    message = wrong(file=file)
    assert message.startswith(f"{file}: policy.{key}: " if key in POLICY else f"{file}: {key}: ")
    assert said in message


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ("sessions = 0", "limits.sessions: must be a positive integer, not 0"),
        ("sessions = -5", "limits.sessions: must be a positive integer"),
        ("sessions = 1.5", "limits.sessions: must be a positive integer"),
        ("sessions = true", "limits.sessions: must be a positive integer"),
        ('sessions = "5"', "limits.sessions: must be a positive integer"),
        ("hello_seconds = 0.0", "limits.hello_seconds: must be a positive number"),
        ("hello_seconds = nan", "limits.hello_seconds: must be a positive number"),
        ("hello_seconds = inf", "limits.hello_seconds: must be a positive number"),
        ("stalled_seconds = 1e300", "limits.stalled_seconds: must be a positive number"),
        (f"stalled_seconds = {10**400}", "limits.stalled_seconds: must be a positive number"),
        ("sync_files_share = 1.1", "limits.sync_files_share: must be at most 1"),
        ("sesions = 5", "limits.sesions: unknown limit; known are closing, "),
    ],
)
def test_a_wrong_limit(write: Callable[[str], Path], limits: str, said: str) -> None:
    file = write(f"[limits]\n{limits}\n")
    message = wrong(file=file)
    assert message.startswith(f"{file}: ")
    assert said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "unknown key 'colour'; known are idle_exit, "),
        ("limits = 5", "limits must be a table [limits]"),
        ("listen = ", "not valid TOML"),
        ("[limits\n", "not valid TOML"),
        ("[other]\nx = 1", "unknown key 'other'"),
    ],
)
def test_a_wrong_file(write: Callable[[str], Path], text: str, said: str) -> None:
    file = write(text)
    message = wrong(file=file)
    assert message.startswith(f"{file}: ")
    assert said in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert wrong(file=tmp_path / "absent") == f"{tmp_path / 'absent'}: cannot be read: No such file or directory"
    assert wrong(file=tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    (tmp_path / "binary").write_bytes(b'listen = "\xff"')
    assert wrong(file=tmp_path / "binary").startswith(f"{tmp_path / 'binary'}: not valid TOML")


def test_a_path_that_is_no_text_is_a_path_all_the_same() -> None:
    path = os.fsdecode(b"/run/\xff")
    assert os.fsencode(load({"listen": path}, {}, None).listen or "") == b"/run/\xff"
    assert "may have about 100 bytes" in wrong({"listen": os.fsdecode(b"/" + b"\xff" * 101)})


def test_who_is_served() -> None:
    everyone = Config()
    some = Config(allow_users=(5,), allow_groups=(50, 60))
    nobody = Config(allow_users=())
    assert everyone.serves(1234, {1})
    assert [some.serves(5, set()), some.serves(6, {50}), some.serves(6, {1, 60}), some.serves(6, {1})] == [True, True, True, False]
    assert not nobody.serves(5, {5})


def test_limits_of_users(write: Callable[[str], Path]) -> None:
    """By name or number; what is not said for a user is what everybody has."""
    file = write(
        "[limits]\nsessions_per_uid = 5\n[policy.quotas.root]\ntimelines_per_uid = 7\n[policy.quotas.1000]\nsync_files_share = 0.5\n"
    )
    config = load({}, {}, file)
    assert config.quotas == {0: {"timelines_per_uid": 7}, 1000: {"sync_files_share": 0.5}}
    users = config.limits_of_users()
    assert (users[0].timelines_per_uid, users[0].sessions_per_uid) == (7, 5)
    assert (users[1000].sync_files_share, users[1000].timelines_per_uid) == (0.5, 1024)


@pytest.mark.parametrize("name", QUOTAS)
def test_every_limit_of_a_user(write: Callable[[str], Path], name: str) -> None:
    value = 0.25 if name == "sync_files_share" else 3
    config = load({}, {}, write(f"[policy.quotas.7]\n{name} = {value}\n"))
    assert getattr(config.limits_of_users()[7], name) == value
