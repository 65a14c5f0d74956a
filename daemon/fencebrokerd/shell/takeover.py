"""How a broker begins that takes over from another one."""

from __future__ import annotations

import dataclasses
import gc
import os
import socket
import time
from collections.abc import Callable

from fencebrokerd import __version__
from fencebrokerd.config import Config, ConfigError
from fencebrokerd.core.broker import Broker
from fencebrokerd.keeper import ACCEPTING, PUBLISHED, SAID_READY, STEPPED_ASIDE, TURN, Keeper
from fencebrokerd.shell import failpoints
from fencebrokerd.shell.journal import Journal, JournalError
from fencebrokerd.shell.listener import Listener
from fencebrokerd.shell.log import Log
from fencebrokerd.shell.notify import say_ready
from fencebrokerd.shell.recovery import inherit, open_descriptors, reconcile
from fencebrokerd.shell.server import Server

__all__ = ["left_behind", "take_over"]


def left_behind(keeper: Keeper, ready_fd: int | None) -> set[int]:
    """What is open and is neither a standard stream nor somebody else's: another broker of this table left it."""
    return {fd for fd in open_descriptors() if fd > 2} - _not_ours(keeper, ready_fd)


def _not_ours(keeper: Keeper, ready_fd: int | None) -> set[int]:
    return {*keeper.descriptors, -1 if ready_fd is None or keeper.page.words[SAID_READY] else ready_fd}


def take_over(
    keeper: Keeper, read: Callable[[], Config], ready_fd: int | None
) -> tuple[Server, Listener | None, Log, Callable[[], None]] | None:
    """Build the server that goes on with what the last broker left; None when it left nothing, for it had not begun.  JournalError when nobody
    can go on.

    After a crash the configuration stays what it was, whatever has become of the file; for a reload it is read again.
    """
    page, words = keeper.page, keeper.page.words
    began = time.monotonic_ns()

    def advance() -> None:
        words[TURN] += 2  # still at it

    gc.disable()  # all that is built here stays
    journal = Journal(page)
    found = inherit(journal, os.getuid(), words[PUBLISHED], advance)
    if found is None or found.state is None:
        if words[SAID_READY]:
            raise JournalError("it is empty, and clients were served")
        gc.enable()
        return None
    is_reload = bool(words[STEPPED_ASIDE])
    log = Log(found.config.log_level)
    config = _read_again(found.config, read, log) if is_reload else found.config
    log.set_level(config.log_level)
    if failpoints.IS_ARMED:
        failpoints.hit("recover.replayed")
    advance()
    table = open_descriptors()
    advance()
    known = _not_ours(keeper, ready_fd)
    addresses = [_address(listening.fd) for listening in found.listeners]
    adopted, unknown = reconcile(found, table, known, bool(words[ACCEPTING]), addresses)
    paths = [listening for listening in found.listeners if listening.path is not None]
    listener = Listener.adopt(paths[0]) if paths else None
    server = Server(config, Broker(config.limits, os.getuid(), found.state), found.listeners, log, read, keeper, journal)
    server.close_unknown(unknown, table)
    if failpoints.IS_ARMED:
        failpoints.hit("recover.reconciled")
    server.adopt(found, adopted)
    words[ACCEPTING] = 0  # not before they are on record: this broker may be killed too
    advance()
    server.redo(found)
    advance()
    for fault in found.faults:
        log.write("error", f"a fault of the broker's own: {fault}")
    if found.version != __version__:
        text = f"version {__version__} goes on from version {found.version}"
        log.write("notice" if is_reload else "warning", text if is_reload else f"{text}, which is not installed any more")

    if is_reload:
        server.write_anew()

    def ready() -> None:
        gc.freeze()
        gc.enable()
        took = (time.monotonic_ns() - began) / 1e6
        what = "reloaded" if is_reload else f"recovered, for {page.reason}"
        state = found.state
        assert state is not None
        log.write(
            "notice",
            f"{what}: {len(state.sessions)} sessions, {len(state.timelines)} timelines, {len(state.sync_files)} sync_files, in {took:.0f} ms",
        )
        say_ready(ready_fd, page)

    return server, listener, log, ready


def _read_again(old: Config, read: Callable[[], Config], log: Log) -> Config:
    """The configuration on disk, with what cannot change while we run as it was."""
    try:
        config = read()
    except ConfigError as err:
        log.write("error", f"the configuration stays as it was: {err}")
        return old
    fixed = [name for name in ("listen", "socket_mode") if getattr(config, name) != getattr(old, name)]
    if fixed:
        log.write("warning", f"needs a restart to change: {', '.join(fixed)}")
    limits = dataclasses.replace(config.limits, descriptors=min(config.limits.descriptors, old.limits.descriptors))
    log.write("notice", "the configuration was read again")
    return dataclasses.replace(config, limits=limits, listen=old.listen, socket_mode=old.socket_mode)


def _address(fd: int) -> object:
    sock = socket.socket(fileno=fd)
    try:
        return sock.getsockname()
    finally:
        sock.detach()
