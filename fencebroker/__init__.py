"""sync_file for ordinary processes: fences as descriptors, passed between unrelated programs by a broker.

    import fencebroker as fb

    with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
        frame = timeline.export(1)              # an out-fence: send it with fb.send_sync_file, or just the string "camera0@1"
        timeline.advance(1)                     # it signals

The README has a first screen, docs/ the rest.  ``fencebroker.aio`` is for asyncio, ``fencebroker.kernel`` follows the Sync File API Guide.
"""

import sys

if sys.platform != "linux":
    raise ImportError(f"fencebroker needs Linux (eventfd, SCM_RIGHTS, /proc), not {sys.platform}")

from fencebroker.client import Broker, connect
from fencebroker.errors import BrokerUnavailable, FenceError, NotASyncFile, QuotaExceeded
from fencebroker.model import Event, ProcessInfo, SyncFenceInfo, SyncFileInfo
from fencebroker.passing import recv_sync_file, send_sync_file
from fencebroker.sync_file import SyncFile
from fencebroker.timeline import Timeline
from fencebroker.waiting import wait_all, wait_any

__version__ = "0.1.0"

__all__ = [
    "Broker",
    "BrokerUnavailable",
    "Event",
    "FenceError",
    "NotASyncFile",
    "ProcessInfo",
    "QuotaExceeded",
    "SyncFenceInfo",
    "SyncFile",
    "SyncFileInfo",
    "Timeline",
    "__version__",
    "connect",
    "recv_sync_file",
    "send_sync_file",
    "wait_all",
    "wait_any",
]
