"""Adapters in repositories of a Hugging Face Hub: the public one, or any server of its download protocol."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import FoundFile
from lorafleet_inference.adapters.sources.base import TIMEOUT_SECONDS, Kind, Listing, Place, larger_than_listed
from lorafleet_inference.adapters.sources.credentials import GivenToken, MountedSecret
from lorafleet_inference.errors import AdapterError


class HubSource:
    """A hub, or some repositories of one; `secret` None: the token is that of the environment."""

    kind: Final = Kind.HUB

    def __init__(
        self, name: str, *, endpoint: str | None, repos: tuple[str, ...] = (), secret: MountedSecret | GivenToken | None
    ) -> None:
        self.name = name
        self._endpoint = endpoint
        self._repos = repos
        self._secret = secret

    def with_token(self, token: str) -> "HubSource":
        """Return the same hub and repositories, opened with somebody else's token."""
        return HubSource(self.name, endpoint=self._endpoint, repos=self._repos, secret=GivenToken(token))

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
        """Download a file, from where an earlier call broke off. Not by `hf_hub_download`: it tries again for half a
        minute by itself, and writes whatever comes.
        """
        url = hf_hub_url(place.path, file.name, revision=place.revision, endpoint=self._endpoint)
        headers = {**build_hf_headers(token=self._token()), "accept-encoding": "identity"}
        with (folder / file.name).open("ab") as target, self._errors(place):
            begin = target.tell() if target.tell() <= file.size_bytes else target.truncate(0)
            if begin == file.size_bytes:
                return
            if begin:
                headers["range"] = f"bytes={begin}-"
            with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
                hf_raise_for_status(response)
                if response.status_code != httpx.codes.PARTIAL_CONTENT:
                    begin = target.truncate(0)
                for chunk in response.iter_bytes():  # as they come: what a buffer holds is lost when it breaks off
                    begin += len(chunk)
                    if begin > file.size_bytes:
                        raise larger_than_listed(file)
                    target.write(chunk)

    def close(self) -> None:
        """The client's connections are shared by all hubs."""

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
        except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
            kind = type(error).__name__
            raise AdapterError(
                Reason.SOURCE_UNAVAILABLE, f"{self.show(place)}: the hub did not answer: {kind}"
            ) from error


def _reason(status: int) -> Reason:
    if status in (401, 403):
        return Reason.UNAUTHORIZED
    return Reason.ARTIFACT_NOT_FOUND if status in (400, 404) else Reason.SOURCE_UNAVAILABLE
