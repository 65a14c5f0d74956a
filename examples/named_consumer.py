"""Wait for work by name: read lines such as ``camera0@7`` from standard input and wait for each point.

    python examples/named_producer.py | python examples/named_consumer.py

A name may be asked for before the producer has minted the point, and even before the producer runs.
"""

import sys

import fencebroker as fb

with fb.connect() as broker, broker.create_timeline("viewer0") as seen:
    for line in sys.stdin:
        point = line.strip()
        try:
            with broker.sync_file(point, expiry=10.0) as fence:
                fence.wait(timeout=10.0)
        except (fb.FenceError, TimeoutError, ValueError) as error:
            sys.exit(f"{point}: {error}")
        print(f"{point} is there", flush=True)
        seen.inc()
