"""Who is served: the version a client speaks, the user it runs as, and whether there is room.  Answers only; nothing is changed here."""

from __future__ import annotations

import errno
import os
from typing import Final

from fencebroker import wire
from fencebroker.errors import Refusal
from fencebrokerd import __version__
from fencebrokerd.config import Config
from fencebrokerd.shell.log import Log, escape
from fencebrokerd.shell.peer import Credentials

__all__ = ["MAKING", "admit", "check_room"]

#: uid 65534 stands for every user that is not mapped into our user namespace (/proc/sys/kernel/overflowuid).
OVERFLOW_UID: Final = 65534
#: Requests after which the journal has more to remember, as often as they are made.  What the others leave behind is bounded, and small.
MAKING: Final = frozenset(
    (
        wire.CREATE_TIMELINE,
        wire.OPEN_TIMELINE,
        wire.SHOW_TIMELINE,
        wire.EXPORT,
        wire.IMPORT,
        wire.MERGE,
        wire.SYNC_FILE,
        wire.RING,
    )
)


def admit(version: int, who: Credentials, config: Config, log: Log) -> None:
    """Refusal unless this client may have a session; whether its uid's quota has room for one is the core's to say."""
    if version != wire.VERSION:
        text = f"this broker (fencebroker {__version__}) speaks version {wire.VERSION} of the protocol, the client version {version}; "
        raise Refusal(errno.EPROTONOSUPPORT, text + "restart the older of the two (a per-user broker: fencectl restart --user)")
    if who.uid == OVERFLOW_UID and not config.allow_overflow_uid:
        text = "the broker sees uid 65534, which stands for every user that is not mapped into its user namespace; "
        raise Refusal(errno.EPERM, text + "run the client without a user namespace of its own, or set allow_overflow_uid")
    if who.uid not in (0, os.getuid()) and not config.serves(who.uid, {who.gid, *who.groups}):
        why = "neither allow_users nor allow_groups of the configuration names it"
        log.once(who.uid, "not allowed", f"refused pid {who.pid} ({escape(who.comm)}): {why}")
        raise Refusal(errno.EPERM, f"the broker does not serve uid {who.uid}: {why}; an administrator can add it and reload the broker")


def check_room(fd: int, full: int, config: Config, n_descriptors: int) -> None:
    """Refusal when the connection's own number ``fd`` shows that the table is ``full``."""
    if fd >= full:
        quota, limit = "descriptors of the broker (sessions)", config.limits.descriptors
        raise Refusal(errno.EMFILE, f"{quota}: {n_descriptors} of {limit} are in use", (quota, limit, n_descriptors))
