"""Tar archives from strangers, read as a stream: whatever they claim, memory and time are bounded, and nothing is written."""

import io
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Final

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.sources.base import CHUNK_BYTES
from lorafleet_inference.errors import AdapterError

MAX_UNPACKED_BYTES: Final = 16 << 30
"""Of an archive; a larger adapter is pushed as one layer a file."""
MAX_ENTRIES: Final = 10_000
MAX_HEADER_BYTES: Final = 256 << 10
"""Of one entry, with what extends it: long names, attributes."""
GZIP_MAGIC = b"\x1f\x8b"
GZIP_BITS: Final = 31
"""zlib's window bits for the header and the check sum of gzip."""
Pull = Callable[[], bytes]
"""Returns the next bytes of the stream; empty at its end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A plain file of an archive; `data` is read before the next entry is asked for, or not at all."""

    path: str
    """Relative, with `/`, without `.` and `..`."""
    size_bytes: int
    data: IO[bytes]


def entries(pull: Pull, *, where: str, max_bytes: int = MAX_UNPACKED_BYTES) -> Generator[Entry, None, None]:
    """Yield the plain files of a tar archive, which may be compressed by gzip, and read the stream to its end.

    Raises:
        AdapterError: ARTIFACT_INVALID: it is no archive, has links or devices, leads out of its folder, or is too large;
            and what `pull` raises.
    """
    stream = _Forward(_unpacked(pull, where), where, max_bytes)
    try:
        with tarfile.TarFile(fileobj=stream, mode="r") as archive:
            for number, member in enumerate(_members(archive, stream), start=1):
                if number > MAX_ENTRIES:
                    raise _invalid(f"{where} has more than {MAX_ENTRIES} entries")
                path = _safe_path(member, where)
                if path is not None:
                    data = archive.extractfile(member)
                    assert data is not None, "a plain file has data"
                    yield Entry(path, member.size, data)
        stream.drain()
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise _invalid(f"{where} is no tar archive, or is cut off") from error


def _members(archive: tarfile.TarFile, stream: "_Forward") -> Iterator[tarfile.TarInfo]:
    while True:
        with stream.reading_headers():
            member = archive.next()
        if member is None:
            return
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        yield member


def _safe_path(member: tarfile.TarInfo, where: str) -> str | None:
    """Return where a plain file lies; None for a folder."""
    shown = repr(member.name[:200])
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts:
        raise _invalid(f"{where}: entry {shown} leads out of the archive")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse() or member.size < 0:
        raise _invalid(f"{where}: entry {shown} is a link, a device or sparse; only plain files are taken")
    return "/".join(parts)


def _unpacked(pull: Pull, where: str) -> Iterator[bytes]:
    """Yield what the stream holds, decompressed where it is gzip, then in pieces of at most a chunk."""
    chunk = pull()
    while len(chunk) == 1 and (more := pull()):
        chunk += more
    if not chunk.startswith(GZIP_MAGIC):
        while chunk:
            yield chunk
            chunk = pull()
        return
    inflate = zlib.decompressobj(GZIP_BITS)
    while chunk:
        try:
            piece = inflate.decompress(chunk, CHUNK_BYTES)
        except zlib.error as error:
            raise _invalid(f"{where} is damaged: {error}") from error
        if piece:
            yield piece
        chunk = inflate.unconsumed_tail
        if inflate.eof:  # another part may follow
            chunk = inflate.unused_data or pull()
            inflate = zlib.decompressobj(GZIP_BITS)
        elif not chunk:
            chunk = pull()
            if not chunk:
                raise _invalid(f"{where} is cut off")


class _Forward(io.RawIOBase):
    """A file that is only read forwards, as `tarfile` does where each entry is read before the next is asked for."""

    def __init__(self, pieces: Iterator[bytes], where: str, max_bytes: int) -> None:
        self._pieces = pieces
        self._where = where
        self._max_bytes = max_bytes
        self._buffer = memoryview(b"")
        self._position = 0
        self._header_bytes: int | None = MAX_HEADER_BYTES
        """What the headers of the next entry may still have; None while an entry is read."""

    @contextmanager
    def reading_headers(self) -> Iterator[None]:
        """Bound what is read until the context ends."""
        self._header_bytes = MAX_HEADER_BYTES
        try:
            yield
        finally:
            self._header_bytes = None

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        if self._header_bytes is not None:
            self._header_bytes -= size
            if size < 0 or self._header_bytes < 0:
                raise _invalid(f"{self._where}: an entry has headers of more than {MAX_HEADER_BYTES} bytes")
        return b"".join(self._take(min(size, CHUNK_BYTES)))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._position:
            raise _invalid(f"{self._where}: an entry has an impossible size")
        for _ in self._take(offset - self._position):
            pass
        return self._position

    def drain(self) -> None:
        """Read what follows the archive's end, so that all of the stream has been seen."""
        for _ in self._take(self._max_bytes + 1):
            pass

    def _take(self, size: int) -> Iterator[memoryview]:
        """Go on by so many bytes, less at the end of the stream."""
        while size:
            if not self._buffer:
                self._buffer = memoryview(next(self._pieces, b""))
                if not self._buffer:
                    return
            part, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(part)
            self._position += len(part)
            if self._position > self._max_bytes:
                raise _invalid(f"{self._where} has more than {self._max_bytes} bytes when it is unpacked")
            yield part


def _invalid(message: str) -> AdapterError:
    return AdapterError(Reason.ARTIFACT_INVALID, message)
