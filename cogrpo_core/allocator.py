"""Settings of glibc's allocator for work on a CPU; a light module, for launchers.

glibc gives large freed blocks back to the system at once, and every denoising or training step
would fault them in again. The settings are read when a process starts.
"""

import os
import sys

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def restart_with_allocator() -> None:
    """Starts this very command again with the settings, unless it has them already."""
    if not ALLOCATOR.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR)
