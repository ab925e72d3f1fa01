"""Declared sources by name, and the sources that `serve --adapter` names: the one place that knows all kinds."""

from collections.abc import Iterable
from pathlib import Path

from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterSource, SourceRef
from lorafleet_inference.adapters.files import FoundFile
from lorafleet_inference.adapters.sources.base import Listing, Place, Source
from lorafleet_inference.adapters.sources.folder import FolderSource
from lorafleet_inference.errors import AdapterError


class Undeclared:
    """A source that nobody has declared: everything in it is refused."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, _: Place) -> None:
        """Refuse."""
        raise AdapterError(Reason.SOURCE_NOT_ALLOWED, f"the base model declares no source {self.name!r}")

    def list_files(self, place: Place) -> Listing:
        """Refuse."""
        self.check(place)
        raise AssertionError("refused before")

    def fetch(self, place: Place, _: FoundFile, __: Path) -> None:
        """Refuse."""
        self.check(place)


class Sources:
    """All sources of a pod."""

    def __init__(self, declared: Iterable[AdapterSource], *, volumes_dir: Path, credentials_dir: Path) -> None:
        self._credentials_dir = credentials_dir
        self._declared = {source.name: self._source(source, volumes_dir) for source in declared}

    def of(self, ref: SourceRef) -> tuple[Source, Place]:
        """Return the declared source of a reference, or one that refuses everything, and the place in it."""
        source = self._declared.get(ref.name) or Undeclared(ref.name)
        return source, Place(ref.repo or ref.path or "", ref.revision)

    def _source(self, declared: AdapterSource, volumes_dir: Path) -> Source:
        if declared.volume is not None:
            return FolderSource(declared.name, volumes_dir / declared.name / declared.volume.path)
        raise NotImplementedError


def ad_hoc(text: str) -> tuple[Source, Place]:
    """Return the source and the place that `--adapter NAME=TEXT` means: a folder, `hf:REPO[@REVISION]` or `s3://…`."""
    return FolderSource("--adapter", Path(text).absolute()), Place("")
