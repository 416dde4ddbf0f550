"""The C library's allocator on a CPU, where tensors are its memory: told to keep what a step frees.

As it is, glibc gives the top of the heap back to the system when a pass has freed enough, and the next pass pays for
the same pages again: a tenth of the demo's iteration, see docs/speed.md.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt's numbers (malloc.h)."""
_NEVER = -1
_LARGEST = 32 * 2**20
"""Bytes of the largest block that glibc takes from the heap, whatever it is told; larger ones always go back."""


def keep_freed() -> None:
    """Keep freed memory for the process's next tensors; nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Both: to set one of them ends glibc's own adjustment of the other.
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _NEVER)
