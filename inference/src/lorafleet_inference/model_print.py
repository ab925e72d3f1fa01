"""Whether two folders, on two hosts, hold the same base model."""

import hashlib
from pathlib import Path

_WHOLE = ("config.json", "model.safetensors.index.json")


def print_of(folder: Path) -> str:
    """Return what folders of the same model have in common: their config, and names and sizes of their weights."""
    digest = hashlib.sha256()
    for name in _WHOLE:
        if (folder / name).is_file():
            digest.update(f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
