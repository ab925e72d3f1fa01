"""Folders of the cache: each named by a hash of what it is made from, made once, and made again when something of it is missing."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localcluster.paths import cache_root

STAMP = ".complete.json"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder of the cache. `kind` and `key` name it; `build` fills an empty folder."""

    kind: str
    key: str
    build: Callable[[Path], None]

    @property
    def folder(self) -> Path:
        """Where it lies once it is there."""
        return cache_root() / f"{self.kind}-{self.key}"

    def complete(self) -> bool:
        """Whether all of it is there: as many files and bytes as when it was made."""
        try:
            return bool(json.loads((self.folder / STAMP).read_text()) == measure(self.folder))
        except (OSError, ValueError):
            return False

    def prepare(self) -> Path:
        """Return the folder, made if need be. An interrupted or damaged one is made again."""
        with lock(f"{self.kind}-{self.key}"):
            if self.complete():
                return self.folder
            self._sweep()
            temporary = Path(tempfile.mkdtemp(prefix=f"{self.kind}-{self.key}.", suffix=".part", dir=cache_root()))
            temporary.chmod(0o755)
            try:
                self.build(temporary)
                (temporary / STAMP).write_text(json.dumps(measure(temporary)))
                temporary.rename(self.folder)
            finally:
                if temporary.exists():
                    shutil.rmtree(temporary, ignore_errors=True)
            return self.folder

    def _sweep(self) -> None:
        """Remove what a damaged folder or an interrupted build left; the caller holds the lock."""
        for leftover in cache_root().glob(f"{self.kind}-{self.key}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def measure(folder: Path) -> dict[str, int]:
    """Return the number of files below a folder and their bytes; byte code, which may come later, and the stamp do not count."""
    num_files = num_bytes = 0
    stack = [str(folder)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        stack.append(entry.path)
                elif entry.name != STAMP:
                    num_files += 1
                    num_bytes += entry.stat(follow_symlinks=False).st_size
    return {"num_files": num_files, "num_bytes": num_bytes}


def content_key(*parts: bytes | str | Path) -> str:
    """Return a short hash over texts and files; a folder counts with the names and content of its files."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path) and part.is_dir():
            for path in sorted(path for path in part.rglob("*") if path.is_file()):
                _add(digest, str(path.relative_to(part)).encode())
                _add(digest, path.read_bytes())
        elif isinstance(part, Path):
            _add(digest, part.read_bytes())
        else:
            _add(digest, part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def _add(digest: "hashlib._Hash", content: bytes) -> None:
    digest.update(len(content).to_bytes(8, "big"))
    digest.update(content)


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the machine-wide lock of that name; others wait."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
