"""What has to be on disk before one says so."""

import os
from pathlib import Path


def replace_whole(path: Path, data: bytes) -> None:
    """Puts `data` in a file's place: whole and on disk, or the file is as it was."""
    draft = path.with_name(f".{path.name}.partial")
    draft.write_bytes(data)
    sync(draft)
    os.replace(draft, path)


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to disk, as a power cut may come."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
