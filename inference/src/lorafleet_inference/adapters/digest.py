"""The digest of an adapter: sha256 over the sorted lines `<sha256> <size> <name>` of its files, each ended by a newline."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import SourceFile
from lorafleet_inference.adapters.files import FoundFile, files_of_adapter
from lorafleet_inference.errors import AdapterError

UNLIMITED_BYTES = 1 << 62


def digest_of(path: Path) -> str:
    """Return `sha256:<64 hex>` of an adapter in a folder.

    Raises:
        AdapterError: the folder is missing, holds no adapter, or cannot be read.
    """
    names = [file.name for file in files_of_adapter(list_folder(path), where=str(path), max_bytes=UNLIMITED_BYTES)]
    return digest_of_files(hash_file(path, name) for name in names)


def digest_of_files(files: Iterable[SourceFile]) -> str:
    """Return the digest of an adapter whose files have been hashed."""
    lines = sorted(f"{file.sha256} {file.size_bytes} {file.path}\n" for file in files)
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def hash_file(folder: Path, name: str, *, version_id: str | None = None) -> SourceFile:
    """Return a file of a folder with its size and sha256.

    Raises:
        AdapterError: it cannot be read.
    """
    try:
        with (folder / name).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
    except OSError as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{name} cannot be read: {error.strerror}") from error
    return SourceFile(path=name, size_bytes=size_bytes, sha256=sha256, version_id=version_id)


def list_folder(path: Path) -> list[FoundFile]:
    """Return the plain files of a folder, links followed.

    Raises:
        AdapterError: it is no folder, or cannot be read.
    """
    try:
        return [FoundFile(entry.name, entry.stat().st_size) for entry in path.iterdir() if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{path} is no folder") from error
    except OSError as error:
        raise AdapterError(Reason.UNAUTHORIZED, f"{path} cannot be read: {error.strerror}") from error
