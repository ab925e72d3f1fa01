"""Frames between the API process and processes that work for it: 4 bytes little-endian length, then the data."""

import struct
from typing import IO

READY = b"ready"
"""The first frame of a process: what it needs to begin is not its first job's time."""
_LENGTH = struct.Struct("<I")


def write_frame(file: IO[bytes], data: bytes) -> None:
    """Write one frame."""
    file.write(_LENGTH.pack(len(data)) + data)
    file.flush()


def read_frame(file: IO[bytes]) -> bytes | None:
    """Return the next frame; None at the end, also in the middle of one."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = file.read(length)
    return data if len(data) == length else None
