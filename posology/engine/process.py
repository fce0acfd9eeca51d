"""What PyTorch on a CPU leaves to its environment, set before it is imported; what the user has set stays.

- Threads of OpenMP wait for each other by spinning, which is best on a machine of their own (by a quarter, for small
  models). With another process on the same cores each wait lasts until the operating system takes the core away: a
  training at 80 examples/s on two cores fell to 4 beside three busy processes, and to 33 where threads sleep
  (docs/LOG.md). They sleep where the machine is busy when the process starts.
- glibc gives the memory of large tensors back and asks for it again, page by page, in every step. It keeps it.
"""

from __future__ import annotations

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt, see malloc.h
_KEPT_BYTES = 2**30
_USUAL_BYTES = 2**25, 2**26
"""The thresholds at which glibc's own adjustment ends in a program with large tensors (DEFAULT_MMAP_THRESHOLD_MAX)."""

_IDLE = 0.25
"""Load by processor, over the last minute, below which a machine counts as free."""


def _busy() -> bool:
    try:
        return os.getloadavg()[0] > _IDLE * (os.cpu_count() or 1)
    except (OSError, AttributeError):  # not known here
        return False


def prepare() -> None:
    """Sets both, where nobody has set them."""
    if "OMP_WAIT_POLICY" not in os.environ and _busy():
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
    keep_memory(True)


def keep_memory(kept: bool) -> None:
    """Whether memory that was freed is kept for later, or treated as glibc does; as it is, where the user has set it."""
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        tune = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # not glibc
        return
    for threshold, usual in zip((_MMAP_THRESHOLD, _TRIM_THRESHOLD), _USUAL_BYTES, strict=True):
        tune(threshold, _KEPT_BYTES if kept else usual)
