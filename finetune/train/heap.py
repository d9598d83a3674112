"""Main memory that a training keeps: what one micro-batch gave back, the next one takes.

glibc hands freed activations back to the kernel, which clears every page anew for the next micro-batch: a fifth of the CPU
time of a small model. Told to keep them, it does not. The most that is ever held is hardly more.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of mallopt(3): free memory at the heap's end that is given back, and the size from which a block is mapped by itself."""
KEPT = 2**31 - 1
LARGE = 1 << 30


def keep() -> bool:
    """Keep freed memory in this process from now on.

    Returns:
        Whether this machine's C library knows how; others are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
