"""Adapters in repositories of a Hugging Face Hub: the public one, or any server of its download protocol."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, XetDownloadError
from huggingface_hub.utils import disable_progress_bars

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import FoundFile
from lorafleet_inference.adapters.sources.base import TIMEOUT_SECONDS, Listing, Place
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.errors import AdapterError

_NETWORK = (ConnectionError, TimeoutError, LocalEntryNotFoundError)
DOWNLOADS = ".hub"
"""Folder beside the files in which the client keeps broken-off downloads and its notes."""


class HubSource:
    """A hub, or some repositories of one; `secret` None: the token is that of the environment."""

    def __init__(
        self, name: str, *, endpoint: str | None, repos: tuple[str, ...] = (), secret: MountedSecret | None
    ) -> None:
        disable_progress_bars()
        self.name = name
        self._endpoint = endpoint
        self._repos = repos
        self._secret = secret

    def show(self, place: Place) -> str:
        """Name a place in messages."""
        return f"{self.name}:{place.path}" + (f"@{place.revision}" if place.revision else "")

    def check(self, place: Place) -> None:
        """Refuse a repository that is not among the declared ones."""
        organisation = place.path.rpartition("/")[0]
        if self._repos and place.path not in self._repos and f"{organisation}/*" not in self._repos:
            raise AdapterError(
                Reason.SOURCE_NOT_ALLOWED, f"source {self.name} does not allow the repository {place.path}"
            )

    def list_files(self, place: Place) -> Listing:
        """Return the files of a repository at the commit that a revision means now."""
        with self._errors(place):
            api = HfApi(endpoint=self._endpoint, token=self._token())
            info = api.model_info(place.path, revision=place.revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
        if info.sha is None:
            raise AdapterError(Reason.SOURCE_UNAVAILABLE, f"{self.show(place)}: the hub names no commit")
        found = [
            FoundFile(file.rfilename, file.size, None, file.blob_id or "", file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or ()
            if file.size is not None and "/" not in file.rfilename
        ]
        return Listing(Place(place.path, info.sha), tuple(found))

    def fetch(self, place: Place, file: FoundFile, folder: Path) -> None:
        """Download a file; the client goes on with what it has of it."""
        target = folder / file.name
        if target.is_file() and target.stat().st_size == file.size_bytes:
            return
        with self._errors(place):
            path = hf_hub_download(
                place.path,
                file.name,
                revision=place.revision,
                local_dir=folder / DOWNLOADS,
                endpoint=self._endpoint,
                token=self._token(),
                etag_timeout=TIMEOUT_SECONDS,
            )
        Path(path).replace(target)

    def _token(self) -> str | bool | None:
        """The mounted one; none is sent to a declared hub without one; None: what the environment has."""
        if self._secret is None:
            return None
        return self._secret.read("token") or False

    @contextmanager
    def _errors(self, place: Place) -> Iterator[None]:
        try:
            yield
        except HfHubHTTPError as error:
            status = error.response.status_code
            raise AdapterError(_reason(status), f"{self.show(place)}: the hub answered {status}") from error
        except HFValidationError as error:
            raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{self.show(place)} is no name of a repository") from error
        except (httpx.HTTPError, XetDownloadError, OSError) as error:
            is_disk = isinstance(error, OSError) and error.errno is not None and not isinstance(error, _NETWORK)
            if is_disk:
                raise
            kind = type(error).__name__
            raise AdapterError(
                Reason.SOURCE_UNAVAILABLE, f"{self.show(place)}: the hub did not answer: {kind}"
            ) from error


def _reason(status: int) -> Reason:
    if status in (401, 403):
        return Reason.UNAUTHORIZED
    return Reason.ARTIFACT_NOT_FOUND if status in (400, 404) else Reason.SOURCE_UNAVAILABLE
