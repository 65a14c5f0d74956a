"""One configuration from arguments, environment and a file; what is wrong is named with its source."""

from __future__ import annotations

import os
import pathlib
import signal
import stat
import sys
import tomllib
from typing import Any

import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Spawn, StartBroker, complaints, not_run

DAEMON = (sys.executable, "-m", "fencebrokerd")


def check(spawn: Spawn, *arguments: str, **environment: str) -> dict[str, Any]:
    """What ``--check-config`` prints, read back."""
    return tomllib.loads(spawn([*DAEMON, "--check-config", *arguments], env=environment).finish())


def complaint(spawn: Spawn, *arguments: str, **environment: str) -> str:
    """What a wrong configuration is answered with: exit code 2, nothing on standard output, no traceback."""
    child = spawn([*DAEMON, "--check-config", *arguments], env=environment)
    assert (child.rest(), child.wait()) == ("", 2)
    assert not complaints(child.log()), child.log()
    return child.log()


def test_what_is_printed_is_a_configuration(spawn: Spawn, tmp_path: pathlib.Path) -> None:
    """``--check-config`` prints the configuration in force as a file that gives the same one."""
    file = tmp_path / "fencebroker.toml"
    arguments = ["--listen", "/tmp/x", "--socket-mode", "0660", "--idle-exit", "2.5", "--log-level", "debug"]
    printed = spawn([*DAEMON, "--check-config", *arguments]).finish()
    file.write_text(printed)
    assert spawn([*DAEMON, "--check-config", "--config", str(file)]).finish() == printed
    read = tomllib.loads(printed)
    assert (read["listen"], read["socket_mode"], read["idle_exit"], read["log_level"]) == ("/tmp/x", 0o660, 2.5, "debug")


def test_arguments_come_before_the_environment_before_the_file(spawn: Spawn, tmp_path: pathlib.Path) -> None:
    """Each key can stand in all three places; the nearest one counts."""
    file = tmp_path / "fencebroker.toml"
    file.write_text('idle_exit = 1\nlog_level = "error"\nsocket_mode = 0o640\n[limits]\ntimelines = 7\n')
    found = check(spawn, "--config", str(file), "--idle-exit", "3", FENCEBROKERD_IDLE_EXIT="2", FENCEBROKERD_LOG_LEVEL="info")
    assert (found["idle_exit"], found["log_level"], found["socket_mode"]) == (3.0, "info", 0o640)
    assert isinstance(found["limits"], dict)
    assert found["limits"]["timelines"] == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("idle_exit = -1", "idle_exit: must be a number of seconds, 0 or more, not -1"),
        ("idle_exit = true", "idle_exit: must be a number of seconds"),
        ('idle_exit = "nan"', "idle_exit: must be a number of seconds"),
        ("idle_exitt = 1", "unknown key 'idle_exitt'; known are"),
        ('log_level = "loud"', "log_level: must be one of error, warning, notice, info, debug, not 'loud'"),
        ("socket_mode = 0o1777", "socket_mode: must be permission bits such as 0600"),
        ('socket_mode = "rw"', "socket_mode: must be permission bits"),
        ("listen = 3", "listen: must be a path, not 3"),
        ('listen = ""', "listen: must be a path"),
        (f'listen = "/{"x" * 120}"', "may have about 100 bytes"),
        ("[policy]\nallow_overflow_uid = 1", "policy.allow_overflow_uid: must be true or false, not 1"),
        ("[policy]\nallow_users = 5", "policy.allow_users: must be a list of users, by name or number, not 5"),
        ("[policy]\nallow_users = [true]", "policy.allow_users: must hold names or numbers of users, not True"),
        ("[policy]\nallow_users = [-1]", "policy.allow_users: must hold names or numbers of users, not -1"),
        ('[policy]\nallow_users = ["nobody@here"]', "policy.allow_users: this machine knows no user 'nobody@here'"),
        ('[policy]\nallow_groups = ["no body"]', "policy.allow_groups: this machine knows no group 'no body'"),
        ('[policy]\nallow_groups = ["\\u0000"]', "policy.allow_groups: this machine knows no group"),
        ("limits = 1", "limits must be a table"),
        ("policy = 1", "policy must be a table [policy]"),
        ("allow_users = []", "allow_users belongs into the table [policy]"),
        ("[policy]\nallow = []", "policy.allow: unknown key; known are allow_overflow_uid, allow_users, allow_groups"),
        ("[policy]\nquotas = 1", "policy.quotas must be a table [policy.quotas]"),
        ("[policy.quotas]\nroot = 1", "policy.quotas.root must be a table [policy.quotas.root]"),
        ("[policy.quotas.nobody-here]", "policy.quotas.nobody-here: this machine knows no user 'nobody-here'"),
        ("[policy.quotas.root]\ntimelines = 5", "policy.quotas.root.timelines: no limit of one user; those are sessions_per_uid, "),
        ("[policy.quotas.0]\ntimelines_per_uid = 0", "policy.quotas.0.timelines_per_uid: must be a positive integer, not 0"),
        ('[limits]\n"\\u001b[2J" = 1', "limits.\\x1b[2J: unknown limit"),
        ("[limits]\ntimeline = 1", "limits.timeline: unknown limit; known are"),
        ("[limits]\ntimelines = 0", "limits.timelines: must be a positive integer, not 0"),
        ("[limits]\ntimelines = 1.5", "limits.timelines: must be a positive integer, not 1.5"),
        ("[limits]\ntimelines = true", "limits.timelines: must be a positive integer"),
        ('[limits]\nhello_seconds = "5"', "limits.hello_seconds: must be a positive number"),
        ("[limits]\nhello_seconds = inf", "limits.hello_seconds: must be a positive number"),
        ("[limits]\nhello_seconds = nan", "limits.hello_seconds: must be a positive number"),
        ("[limits]\nsync_files_share = 1.5", "limits.sync_files_share: must be at most 1"),
        ("[limits]\npacket_bytes = 4096", "limits.packet_bytes: part of the protocol"),
        ("idle_exit = = 1", "not valid TOML"),
        ("\udcff", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_clear_line(spawn: Spawn, tmp_path: pathlib.Path, text: str, said: str) -> None:
    """The file, the key, what was wrong and what would be right."""
    file = tmp_path / "fencebroker.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    log = complaint(spawn, "--config", str(file))
    assert said in log
    assert str(file) in log


def test_a_wrong_argument_or_variable_is_named(spawn: Spawn, tmp_path: pathlib.Path) -> None:
    """The source is named as it was written: an option, a variable, a file that cannot be read."""
    assert "--idle-exit: must be a number of seconds, 0 or more, not 'soon'" in complaint(spawn, "--idle-exit", "soon")
    assert "FENCEBROKERD_IDLE_EXIT: must be a number" in complaint(spawn, FENCEBROKERD_IDLE_EXIT="soon")
    assert "FENCEBROKERD_ALLOW_OVERFLOW_UID: must be true or false" in complaint(spawn, FENCEBROKERD_ALLOW_OVERFLOW_UID="maybe")
    assert "--socket-mode: must be permission bits" in complaint(spawn, "--socket-mode", "888")
    assert f"{tmp_path}/none: cannot be read: No such file or directory" in complaint(spawn, "--config", f"{tmp_path}/none")
    assert "cannot be read: Is a directory" in complaint(spawn, "--config", str(tmp_path))
    assert "--listen and --user exclude each other" in complaint(spawn, "--listen", "/tmp/x", "--user")


def test_a_wrong_configuration_starts_nothing(spawn: Spawn, folder: str) -> None:
    """Checked before anything is made."""
    child = spawn([*DAEMON, "--listen", f"{folder}/broker", "--idle-exit", "soon"])
    assert child.wait() == 2
    assert os.listdir(folder) == []


def test_the_environment_configures(spawn: Spawn, folder: str) -> None:
    """FENCEBROKERD_* stands for the options of that name."""
    path = f"{folder}/from environment"
    child = spawn([*DAEMON, "--ready-fd", "1"], env={"FENCEBROKERD_LISTEN": path, "FENCEBROKERD_SOCKET_MODE": "0620"})
    assert child.line() == ""
    fb.connect(path).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o620
    child.signal(signal.SIGTERM)
    assert child.wait() == 0


def start_with(start_broker: StartBroker, tmp_path: pathlib.Path, text: str) -> BrokerProcess:
    file = tmp_path / "fencebroker.toml"
    file.write_text(text)
    return start_broker("--config", str(file))


def test_the_file_configures_limits(start_broker: StartBroker, tmp_path: pathlib.Path) -> None:
    """A limit of the table [limits] is the one that refuses, and the error names it."""
    broker = start_with(start_broker, tmp_path, "[limits]\ntimelines_per_uid = 2\n")
    with fb.connect(broker.path) as connection, connection.create_timeline(), connection.create_timeline():
        with pytest.raises(fb.QuotaExceeded) as caught:
            connection.create_timeline()
        assert (caught.value.quota, caught.value.limit, caught.value.used) == ("timelines per user", 2, 2)


def test_a_quiet_log_is_quiet(start_broker: StartBroker) -> None:
    """``--log-level warning`` leaves out start and stop."""
    broker = start_broker("--log-level", "warning")
    assert broker.stop() == (0, "")


# Who is served

#: Becomes uid and gid 4242 (only root can), and says what became of its hello.
GUEST = """
    import os, sys
    import fencebroker as fb
    os.setgroups([int(gid) for gid in sys.argv[2:]])
    os.setresgid(4242, 4242, 4242)
    os.setresuid(4242, 4242, 4242)
    try:
        fb.connect(sys.argv[1]).close()
    except PermissionError as err:
        print(err.strerror)
    else:
        print("served")
"""
REFUSED = "the broker does not serve uid 4242: neither allow_users nor allow_groups of the configuration names it; "


@pytest.fixture
def configured(start_broker: StartBroker, tmp_path: pathlib.Path, folder: str) -> tuple[BrokerProcess, pathlib.Path]:
    """A broker that anybody can reach, and its configuration."""
    if os.getuid() != 0:
        not_run("becoming another user needs root")
    os.chmod(folder, 0o755)
    file = tmp_path / "fencebroker.toml"
    file.write_text("[policy]\nallow_users = []\n")
    return start_broker("--config", str(file), "--socket-mode", "0666", "--log-level", "info", path=f"{folder}/broker"), file


def answer(spawn: Spawn, broker: BrokerProcess, *groups: int) -> str:
    return spawn(GUEST, broker.path, *groups).finish().strip()


def test_who_is_not_named_is_refused(configured: tuple[BrokerProcess, pathlib.Path], spawn: Spawn) -> None:
    """An empty list serves nobody but root and the broker's own user; the refusal has a text, the log one line."""
    broker, _ = configured
    for _ in range(2):
        assert answer(spawn, broker).startswith(REFUSED)
    fb.connect(broker.path).close()
    assert broker.stop()[1].count("neither allow_users nor allow_groups of the configuration names it (uid 4242; said once)") == 1


def test_users_and_groups_are_let_in_by_a_reload(configured: tuple[BrokerProcess, pathlib.Path], spawn: Spawn) -> None:
    """SIGHUP reads the lists again; a user may be named by uid, by primary group or by any other group."""
    broker, file = configured
    with fb.connect(broker.path) as connection:
        for text, groups, served in [
            ("[policy]\nallow_users = [4242]", [], True),
            ("[policy]\nallow_users = [4241]", [], False),
            ("[policy]\nallow_groups = [4242]", [], True),
            ("[policy]\nallow_groups = [7]", [], False),
            ("[policy]\nallow_groups = [7]", [5, 7], True),
            ("", [], True),
        ]:
            file.write_text(text)
            broker.reload()
            connection.create_timeline().close()
            assert (answer(spawn, broker, *groups) == "served") is served, text


def test_names_of_users_and_groups(spawn: Spawn, tmp_path: pathlib.Path) -> None:
    """Names become numbers when the configuration is read; the environment has them with commas or blanks between."""
    file = tmp_path / "fencebroker.toml"
    file.write_text('[policy]\nallow_users = ["root", 5]\nallow_groups = ["root"]\n')
    found = check(spawn, "--config", str(file), FENCEBROKERD_ALLOW_GROUPS="root, 12 7")
    assert (found["policy"]["allow_users"], found["policy"]["allow_groups"]) == ([0, 5], [0, 12, 7])


def test_limits_of_one_user(configured: tuple[BrokerProcess, pathlib.Path], spawn: Spawn) -> None:
    """A reload gives a user limits of its own and takes them away; what it has stays, others' limits stay, and nothing is lost."""
    broker, file = configured
    guest = """
        import os, sys, fencebroker as fb
        os.setgroups([]); os.setresgid(4242, 4242, 4242); os.setresuid(4242, 4242, 4242)
        with fb.connect(sys.argv[1]) as broker:
            held = []
            for line in sys.stdin:
                try:
                    held.append(broker.create_timeline())
                    print(len(held), flush=True)
                except fb.QuotaExceeded as err:
                    print(err.strerror, flush=True)
            for timeline in held:
                timeline.close()
    """
    served = "[policy]\nallow_users = [4242]\n"
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:

        def configure(text: str) -> None:
            file.write_text(served + text)
            broker.reload()
            connection.create_timeline().close()

        configure("[policy.quotas.4242]\ntimelines_per_uid = 2\n")
        child = spawn(guest, broker.path)

        def create() -> str:
            child.send("")
            return child.line()

        assert [create() for _ in range(3)] == ["1", "2", "timelines per user: 2 of 2 are in use and 1 more do not fit"]
        with connection.create_timeline(), connection.create_timeline():
            pass
        configure("[policy.quotas.4242]\ntimelines_per_uid = 3\n")
        assert create() == "3"
        configure("[policy.quotas.4242]\ntimelines_per_uid = 1\n")
        assert create() == "timelines per user: 3 of 1 are in use and 1 more do not fit"
        configure("")
        assert create() == "4"
        child.finish()
        timeline.advance(1)
        fence.wait(LIMIT)
