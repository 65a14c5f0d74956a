"""What whoever started the daemon hears, and whom it sees, when the keeper replaces a broker."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, StartBroker, last_descendant, wait_gone


class Manager:
    """The socket of a service manager."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(LIMIT)
        self.sock.bind(path)
        self.path = path

    def hear(self) -> str:
        """Return the next thing that it is told."""
        return self.sock.recv(1000).decode()

    def hear_until(self, text: str) -> list[str]:
        """Return what it is told until something begins with ``text``, and that."""
        heard = [self.hear()]
        while not heard[-1].startswith(text):
            heard.append(self.hear())
        return heard


def kill_broker(broker: BrokerProcess) -> None:
    pid = last_descendant(broker.process.pid)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)


def test_ready_is_said_once_though_the_first_broker_died_before_it_could(start_broker: StartBroker) -> None:
    """The newline comes from the second one, and the descriptor is closed then."""
    broker = start_broker(env={"FENCEBROKERD_FAILPOINT": "compact.after:1"})  # start_broker waits for the newline
    assert "failpoint compact.after" in broker.log()
    with fb.connect(broker.path) as connection:
        status = connection._status()
    assert status["generation"] == 2
    assert status["open_descriptors"] == status["known_descriptors"], "the one that readiness was told on is closed"


def test_a_service_manager_hears_of_each_broker(start_broker: StartBroker, folder: str) -> None:
    """READY=1 with the keeper's pid from each, its STATUS= and its watchdog's signs of life; RELOADING=1 only of a reload."""
    manager = Manager(f"{folder}/notify")
    with manager.sock:
        broker = start_broker(env={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "400000"})
        ready = f"READY=1\nMAINPID={broker.process.pid}"
        assert manager.hear() == ready
        manager.hear_until("WATCHDOG=1")
        kill_broker(broker)
        heard = manager.hear_until("READY=1")
        assert heard[-1] == ready
        assert not [text for text in heard if text.startswith(("RELOADING=1", "STOPPING=1"))]
        assert manager.hear_until("WATCHDOG=1")[-1]
        broker.process.signal(signal.SIGHUP)
        heard = manager.hear_until("READY=1")
        began = next(text for text in heard if text.startswith("RELOADING=1\nMONOTONIC_USEC="))
        assert 0 < time.monotonic_ns() // 1000 - int(began.rpartition("=")[2]) < LIMIT * 1e6
        with fb.connect(broker.path) as connection, connection.create_timeline():
            assert "STATUS=1 client, 1 timeline" in manager.hear_until("STATUS=1 client, 1 timeline")
        broker.process.signal(signal.SIGTERM)
        assert manager.hear_until("STOPPING=1")


def test_a_reload_that_comes_while_one_is_tried_is_not_lost(start_broker: StartBroker, tmp_path: Path) -> None:
    """The first has read a configuration that is wrong; when it was put right the second one was asked for."""
    file = tmp_path / "fencebroker.toml"
    file.write_text("")
    broker = start_broker("--config", str(file))
    file.unlink()
    os.mkfifo(file)
    broker.process.signal(signal.SIGHUP)
    with file.open("w") as first:  # open for writing as soon as somebody reads
        broker.process.signal(signal.SIGHUP)
        (tmp_path / "right").write_text("[limits]\ntimelines_per_uid = 1\n")
        (tmp_path / "right").rename(file)
        first.write("log_level = 'loud'\n")
    broker.process.wait_said("the configuration was read again")
    assert "must be one of error, warning, notice, info, debug, not 'loud'" in broker.log()
    with fb.connect(broker.path) as connection:
        assert connection._status()["reloads"] == 1


def test_the_reason_of_the_last_recovery_outlives_a_reload(broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection:
        assert (connection._status()["recoveries"], connection._status()["last_reason"]) == (0, None)
        kill_broker(broker)
        assert (connection._status()["recoveries"], connection._status()["last_reason"]) == (1, "it was ended by SIGKILL")
        broker.reload()
        status = connection._status()
    assert (status["recoveries"], status["reloads"], status["last_reason"]) == (1, 1, "it was ended by SIGKILL")
    assert (status["generation"], status["keeper_pid"]) == (3, broker.process.pid)


def test_the_keepers_lines_have_the_form_of_the_log(broker: BrokerProcess) -> None:
    """A time, its own pid, a level: ``fencectl logs`` reads them like any other."""
    kill_broker(broker)
    broker.process.wait_said("recovered, for")
    said = next(line for line in broker.log().splitlines() if "is replaced" in line)
    assert re.fullmatch(
        rf"\d{{4}}-\d\d-\d\dT\S+ fencebrokerd\[{broker.process.pid}\] warning: keeper: the broker is replaced: it was ended by SIGKILL",
        said,
    )
