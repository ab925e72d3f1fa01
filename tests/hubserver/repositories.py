"""Repositories of a root folder: revisions, commits, files. A commit is a hash over all files of a revision."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LFS_SUFFIXES = (".safetensors", ".bin", ".model")


@dataclass(frozen=True)
class HubFile:
    """One file of a revision."""

    name: str
    path: Path
    size: int
    sha256: str
    blob_id: str
    """git's hash of the content."""

    @property
    def is_lfs(self) -> bool:
        return self.name.endswith(LFS_SUFFIXES)

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    """One revision of a repository."""

    sha: str
    files: tuple[HubFile, ...]

    def file(self, name: str) -> HubFile | None:
        return next((file for file in self.files if file.name == name), None)


class Repositories:
    """All repositories of one organisation below a root."""

    def __init__(self, root: Path, organisation: str) -> None:
        self._root = root
        self._organisation = organisation

    def exists(self, repo: str) -> bool:
        organisation, _, name = repo.partition("/")
        return organisation == self._organisation and name in self._names()

    def commit(self, repo: str, revision: str) -> Commit | None:
        """The commit of a branch, or of a full commit hash; None where there is none."""
        folder = self._root / repo.partition("/")[2]
        revisions = {path.name[1:]: path for path in folder.glob("@*") if path.is_dir()} or {"main": folder}
        if revision in revisions:
            return _commit(revisions[revision])
        return next((made for made in map(_commit, revisions.values()) if made.sha == revision), None)

    def _names(self) -> set[str]:
        return {path.name for path in self._root.iterdir() if path.is_dir()}


def _commit(folder: Path) -> Commit:
    files = tuple(_file(folder, path) for path in sorted(folder.rglob("*")) if path.is_file())
    text = "".join(f"{file.name} {file.sha256}\n" for file in files)
    return Commit(hashlib.sha1(text.encode()).hexdigest(), files)


def _file(folder: Path, path: Path) -> HubFile:
    status = path.stat()
    return _hashed(path.relative_to(folder).as_posix(), path, status.st_size, status.st_mtime_ns)


@cache
def _hashed(name: str, path: Path, size: int, _: int) -> HubFile:
    data = path.read_bytes()
    blob_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return HubFile(name, path, size, hashlib.sha256(data).hexdigest(), blob_id)
