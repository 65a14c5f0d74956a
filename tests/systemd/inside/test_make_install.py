"""What ``make install`` puts into /usr/local runs under systemd too, and ``make uninstall`` leaves nothing."""

from __future__ import annotations

from tests.systemd.inside.machine import SOCKET, listing, run, show


def test_it_is_installed_run_and_removed() -> None:
    before = listing()
    run("tar", "-xf", "/opt/test/installed.tar", "-C", "/", "--no-overwrite-dir", "--keep-directory-symlink")
    run("systemd-sysusers", "/usr/local/lib/sysusers.d/fencebroker.conf")
    run("systemd-tmpfiles", "--create", "/usr/local/lib/tmpfiles.d/fencebroker.conf")
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--now", "fencebroker.socket")
    assert show("ActiveState") == "inactive"
    assert "/usr/local/bin" in run("sh", "-c", "command -v fencectl")
    run("fencectl", "status")
    assert show("ActiveState") == "active"
    assert "/usr/local/bin/fencebrokerd" in show("ExecStart")
    assert "removed from" in run("/opt/test/uninstall.sh")
    assert not SOCKET.exists()
    assert show("ActiveState") == "inactive"
    assert listing() == before
