"""How long things took, counted in buckets: a few numbers stand for any amount of measurements.  Pure; the broker counts, fencectl reads.

A bucket is a quarter of a power of two of nanoseconds, so that what is read from it is right to within an eighth.  Below 4 us there are
four buckets of a microsecond each, and what took longer than 2.4 hours is in the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["LAST", "bucket_of", "middle_of", "percentile"]

LAST: Final = 127


def bucket_of(ns: int) -> int:
    """Say in which bucket a length of time is counted."""
    unit = ns >> 10
    if unit < 4:
        return max(0, unit)
    octave = unit.bit_length()
    bucket = ((octave - 2) << 2) + (unit >> (octave - 3) & 3)
    return min(LAST, bucket)


def middle_of(bucket: int) -> int:
    """Return the length of time, in ns, that stands for a bucket."""
    octave, quarter = divmod(bucket, 4)
    if not octave:
        return (2 * quarter + 1) << 9
    return (2 * (4 + quarter) + 1) << (octave + 8)


def percentile(counts: Mapping[int, int], percent: float) -> int | None:
    """Return what ``percent`` of the measurements did not exceed, in ns; None when there are none."""
    total = sum(counts.values())
    rank = total * percent / 100
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen and seen >= rank:
            return middle_of(bucket)
    return None
