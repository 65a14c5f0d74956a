"""The broker's limits.  Pure, and by itself: the library does without, so that importing it stays short."""

from __future__ import annotations

from dataclasses import dataclass

from fencebroker.model import PACKET_BYTES, PACKET_DESCRIPTORS

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Every limit of the broker in one table, with the reason for each.  Numbers are counts unless the name says bytes or seconds."""

    #: Decoding MessagePack amplifies memory, 72-fold for what is there and more for arrays that are only declared: with 16 KiB the worst
    #: packet costs 9 MiB until it is refused.
    packet_bytes: int = PACKET_BYTES
    #: SCM_MAX_FD: the kernel refuses a 254th descriptor in one message.
    packet_descriptors: int = PACKET_DESCRIPTORS
    #: A process needs one session; 256 leave room for a machine of workers under one uid.
    sessions_per_uid: int = 256
    sessions: int = 1024
    #: A connection that says nothing holds two descriptors; five seconds are ample for a local hello.
    hello_seconds: float = 5.0
    #: Of so many that say nothing, the oldest of the user who has most of them gives way to the next connection.
    half_open: int = 256
    #: A timeline costs two descriptors while it is created and one after that.
    timelines_per_uid: int = 1024
    timelines: int = 4096
    #: A timeline on which many sessions may mint costs 150 bytes for each of them.
    minters_per_uid: int = 16_384
    #: The table of descriptors; the shell replaces it by RLIMIT_NOFILE.
    descriptors: int = 20_000
    #: Kept free so that accepting, importing and inspecting still work when the rest is used up.
    descriptor_reserve: int = 64
    #: Of what the reserve leaves, one uid may have this share in sync_files.
    sync_files_share: float = 0.8
    #: A merge walks its members once; 1,024 keep that well under a millisecond.
    merge_members: int = 1024
    #: A member costs up to 300 bytes while its merge is on record: these are 20 MiB, and four for each of 15,000 sync_files.
    members_per_uid: int = 65_536
    members: int = 262_144
    #: Descriptors in flight count against the broker's own limit until the client reads them.
    unread_descriptors: int = 256
    #: Over all sessions of a user, those that have ended with unread answers included.  A user who reads leaves none.
    unread_per_uid: int = 2048
    #: Descriptors that a user sent and that are not the broker's.  Closing one takes some microseconds, unless its maker lets it take for ever;
    #: beyond these, sixteen full packets, none is taken from that user.  All users together have a quarter of the table at most.
    closing_per_uid: int = 4096
    closing: int = 16_384
    #: What waits for one slow reader: an answer and a burst of events.  A larger queue would only delay its end.
    queued_bytes: int = 256 * 1024
    #: A session that takes nothing for so long is disconnected.
    stalled_seconds: float = 10.0
    #: Signalled fences whose handle is closed are kept for questions afterwards, the newest so many per uid.  The oldest go some at a time.
    retained_records: int = 1024
    #: Failed points remembered per timeline, so that a later export of one still has its error.
    remembered_failures: int = 1024
    #: A remembered failure costs 250 bytes; beyond these 16 MiB a timeline forgets its oldest when another of its points fails.
    failures_per_uid: int = 65_536
    #: Who follows the events has each of them written out; people look with a few programs at a time.
    subscriptions_per_uid: int = 16
