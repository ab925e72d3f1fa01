"""Adapters in a folder: a mounted volume, or a place of the local disk. Nothing outside the root is read, also by links."""

import os
from pathlib import Path
from typing import BinaryIO

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import FoundFile
from lorafleet_inference.adapters.sources.base import CHUNK_BYTES, Listing, Place, larger_than_listed
from lorafleet_inference.errors import AdapterError


class FolderSource:
    """A folder and what lies below it."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self._root = root

    def check(self, place: Place) -> None:
        """Every path below the root is allowed; that it stays there is seen when it is read."""

    def list_files(self, place: Place) -> Listing:
        """Return the plain files of the folder at a place; links are followed as long as they stay below the root."""
        folder = self._root / place.path
        try:
            names = [name for name in os.listdir(folder) if (folder / name).is_file()]  # noqa: PTH208  plain names
        except FileNotFoundError as error:
            raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{self.name} has no folder {_shown(place)}") from error
        except NotADirectoryError as error:
            raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{_shown(place)} in {self.name} is no folder") from error
        except OSError as error:
            raise self._failed(place, error) from error
        return Listing(place, tuple(self._found(place, name) for name in names))

    def fetch(self, place: Place, file: FoundFile, folder: Path) -> None:
        """Copy a file."""
        with self._open(place, file.name) as source, (folder / file.name).open("wb") as target:
            copied = 0
            while chunk := source.read(CHUNK_BYTES):
                copied += len(chunk)
                if copied > file.size_bytes:
                    raise larger_than_listed(file)
                target.write(chunk)

    def _found(self, place: Place, name: str) -> FoundFile:
        with self._open(place, name) as file:
            status = os.fstat(file.fileno())
            return FoundFile(name, status.st_size, tag=f"{status.st_mtime_ns}-{status.st_ino}")

    def _open(self, place: Place, name: str) -> BinaryIO:
        """Open a file that really lies below the root: what was opened is asked, so no link can be changed in between."""
        try:
            file = (self._root / place.path / name).open("rb")
        except FileNotFoundError as error:
            raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{_shown(place)} in {self.name} has no {name}") from error
        except OSError as error:
            raise self._failed(place, error) from error
        opened = Path(f"/proc/self/fd/{file.fileno()}").readlink()
        if not opened.is_relative_to(self._root.resolve()):
            file.close()
            raise AdapterError(
                Reason.SOURCE_NOT_ALLOWED, f"{name} of {_shown(place)} in {self.name} leads out of the source"
            )
        return file

    def _failed(self, place: Place, error: OSError) -> AdapterError:
        if isinstance(error, PermissionError):
            return AdapterError(Reason.UNAUTHORIZED, f"{_shown(place)} in {self.name} may not be read")
        return AdapterError(Reason.SOURCE_UNAVAILABLE, f"{_shown(place)} in {self.name}: {error.strerror}")


def _shown(place: Place) -> str:
    return place.path or "its root"
