"""Base models of a Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import disable_progress_bars

from lorafleet_inference.model_origin import NotGiven

TIMEOUT_SECONDS = 30.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubModel:
    """A repository at a revision (branch, tag, commit; None: `main`) of the hub at `endpoint` (None: the public one)."""

    place = "the hub"

    def __init__(
        self, repo: str, revision: str | None, *, endpoint: str | None = None, token: str | None = None
    ) -> None:
        self._repo = repo
        self._revision = revision or "main"
        self._api = HfApi(endpoint=endpoint, token=token)
        disable_progress_bars()

    def __str__(self) -> str:
        return self._repo

    @property
    def folder(self) -> str:
        """Its folder in a cache."""
        return self._repo.replace("/", "--")

    @property
    def ref(self) -> str:
        """The revision, as a file name."""
        return quote(self._revision, safe="")

    @property
    def pinned(self) -> str | None:
        """The revision, where it is a commit."""
        return self._revision if _COMMIT.fullmatch(self._revision) else None

    def commit(self) -> str:
        """Ask which commit the revision is."""
        with _answers():
            commit: str | None = self._api.model_info(self._repo, revision=self._revision, timeout=TIMEOUT_SECONDS).sha
        if commit is None or not _COMMIT.fullmatch(commit):
            raise NotGiven(f"it names no commit of {self._revision}", is_lasting=True)
        return commit

    def sizes(self, commit: str) -> dict[str, int]:
        """Return the files with their bytes."""
        with _answers():
            info = self._api.model_info(self._repo, revision=commit, files_metadata=True, timeout=TIMEOUT_SECONDS)
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def fetch(self, commit: str, name: str, folder: Path) -> None:
        """Bring a file into a folder."""
        with _answers():
            self._api.hf_hub_download(self._repo, name, revision=commit, local_dir=folder)

    def close(self) -> None:
        """Nothing is open: the library shares its connections."""


@contextmanager
def _answers() -> Iterator[None]:
    try:
        yield
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        httpx.HTTPError,
        ConnectionError,
        ValueError,
        RuntimeError,
    ) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotGiven(first_line, is_lasting=_refuses(error)) from error


def _refuses(error: Exception) -> bool:
    if not isinstance(error, HfHubHTTPError):
        return False
    status: int = error.response.status_code
    return status < httpx.codes.INTERNAL_SERVER_ERROR and status != httpx.codes.TOO_MANY_REQUESTS
