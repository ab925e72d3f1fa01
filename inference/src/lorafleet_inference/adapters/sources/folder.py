"""Adapters in a folder: a mounted volume, or a place of the local disk. Nothing outside the root is read, also by links."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import FILES, PICKLED, FoundFile
from lorafleet_inference.adapters.sources.base import CHUNK_BYTES, Kind, Listing, Place, larger_than_listed
from lorafleet_inference.errors import AdapterError

SEEN = FILES | set(PICKLED)


class FolderSource:
    """A folder and what lies below it; its own path may lead out of `boundary` no more than the paths in it."""

    kind: Final = Kind.LOCAL

    def __init__(self, name: str, root: Path, *, boundary: Path | None = None) -> None:
        self.name = name
        self._root = root
        self._boundary = root if boundary is None else boundary

    def show(self, place: Place) -> str:
        """Name a place in messages."""
        return f"{self.name}:{place.path}"

    def check(self, place: Place) -> None:
        """Every path is allowed; that it stays below the root is seen when it is read."""

    def list_files(self, place: Place) -> Listing:
        """Return the plain files of the folder at a place; links are followed as long as they stay inside."""
        folder = self._root / place.path
        with self._errors(place):
            names = [name for name in os.listdir(folder) if (folder / name).is_file()]  # noqa: PTH208  plain names
        return Listing(place, tuple(self._found(place, name) for name in names if name in SEEN))

    def fetch(self, place: Place, file: FoundFile, folder: Path) -> None:
        """Copy a file."""
        with self._open(place, file.name) as source, (folder / file.name).open("wb") as target:
            copied = 0
            while chunk := source.read(CHUNK_BYTES):
                copied += len(chunk)
                if copied > file.size_bytes:
                    raise larger_than_listed(file)
                target.write(chunk)

    def close(self) -> None:
        """There is nothing to close."""

    def _found(self, place: Place, name: str) -> FoundFile:
        with self._open(place, name) as file:
            status = os.fstat(file.fileno())
            return FoundFile(name, status.st_size, tag=f"{status.st_mtime_ns}-{status.st_ino}")

    def _open(self, place: Place, name: str) -> BinaryIO:
        """Open a file that really lies inside: what was opened is asked, so no link can be changed in between."""
        with self._errors(place):
            file = (self._root / place.path / name).open("rb")
        opened = Path(f"/proc/self/fd/{file.fileno()}").readlink()
        if not opened.is_relative_to(self._boundary.resolve()):
            file.close()
            raise AdapterError(Reason.SOURCE_NOT_ALLOWED, f"{name} of {self.show(place)} leads out of the source")
        return file

    @contextmanager
    def _errors(self, place: Place) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{self.show(place)} is no folder of an adapter") from error
        except PermissionError as error:
            raise AdapterError(Reason.UNAUTHORIZED, f"{self.show(place)} may not be read") from error
        except OSError as error:
            raise AdapterError(Reason.SOURCE_UNAVAILABLE, f"{self.show(place)}: {error.strerror or error}") from error


class LocalDisk(FolderSource):
    """The whole disk of the machine: what a person names on the command line."""

    def __init__(self) -> None:
        super().__init__("disk", Path("/"))

    def show(self, place: Place) -> str:
        """Name a place in messages."""
        return f"/{place.path}"
