"""What every source can do. Calls block; the store runs them in threads."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import FoundFile
from lorafleet_inference.errors import AdapterError

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0
"""For connecting, and for each read."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a source: a repository, or a path below its root."""

    path: str
    revision: str | None = None
    """A branch, tag, commit or digest, where the source has them."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies at a place, which is pinned to a commit or a digest where the source has them."""

    place: Place
    files: tuple[FoundFile, ...]


class Kind(StrEnum):
    """What a source is, by LoRAX's names."""

    HUB = "hub"
    LOCAL = "local"
    """A volume, or a folder of the machine."""
    OCI = "oci"
    """A container registry; LoRAX has none."""
    S3 = "s3"


class Source(Protocol):
    """A declared source, or one that `serve --adapter` names."""

    @property
    def kind(self) -> Kind | None:
        """None: one that refuses everything."""

    @property
    def name(self) -> str:
        """As declared; for messages and labels."""

    def show(self, place: Place) -> str:
        """Name a place as a user would find it; for messages."""

    def check(self, place: Place) -> None:
        """Say whether the declaration allows a place; asks nobody.

        Raises:
            AdapterError: SOURCE_NOT_ALLOWED.
        """

    def list_files(self, place: Place) -> Listing:
        """Return the files at a place, without those in folders below it.

        Raises:
            AdapterError: ARTIFACT_NOT_FOUND, UNAUTHORIZED, SOURCE_NOT_ALLOWED, or the retryable SOURCE_UNAVAILABLE.
        """

    def fetch(self, place: Place, file: FoundFile, folder: Path) -> None:
        """Write a listed file to `folder/<its name>`, going on where an earlier call for the same folder broke off.

        Never writes more than the listed size.

        Raises:
            AdapterError: as `list_files`; ARTIFACT_INVALID when the file is larger than listed.
            OSError: the folder cannot be written.
        """

    def close(self) -> None:
        """Let go of idle connections; what is asked later opens new ones."""


def larger_than_listed(file: FoundFile) -> AdapterError:
    """Return the error for a file that grows beyond what was listed."""
    return AdapterError(
        Reason.ARTIFACT_INVALID, f"{file.name} is larger than the {file.size_bytes} bytes that were listed"
    )
