"""Adapters in a container registry, as OCI artifacts: one layer a file, as `oras push` writes them, or one tar archive."""

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Final

import httpx

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import FILES, FoundFile
from lorafleet_inference.adapters.sources.archive import entries
from lorafleet_inference.adapters.sources.base import CHUNK_BYTES, Kind, Listing, Place, larger_than_listed
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.adapters.sources.oci_auth import DockerConfig
from lorafleet_inference.adapters.sources.oci_client import RegistryClient
from lorafleet_inference.adapters.sources.oci_manifest import (
    SEEN,
    Archive,
    Elsewhere,
    Files,
    Layer,
    names_of_adapter,
    read_manifest,
)
from lorafleet_inference.errors import AdapterError

DEFAULT_TAG: Final = "latest"
REPO: Final = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
MAX_REMEMBERED: Final = 256
_Unpacked = dict[str, tuple[str, FoundFile]]
"""What an archive holds of an adapter: by name, the path in the archive and the file."""


class OciSource:
    """A container registry, or some repositories of one; `secret` None: it is asked without a login."""

    kind: Final = Kind.OCI

    def __init__(
        self,
        name: str,
        endpoint: str,
        *,
        repos: tuple[str, ...] = (),
        secret: MountedSecret | DockerConfig | None,
        shown: str | None = None,
    ) -> None:
        self.name = name
        self._shown = f"{name}:" if shown is None else shown
        self._repos = repos
        self._client = RegistryClient(name, endpoint, secret)
        self._manifests: OrderedDict[tuple[str, str], Files | Archive] = OrderedDict()
        """By repository and digest."""
        self._archives: OrderedDict[str, _Unpacked] = OrderedDict()
        """By the digest of the layer."""
        self._mutex = threading.Lock()

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    def show(self, place: Place) -> str:
        """Name a place in messages."""
        reference = place.revision or DEFAULT_TAG
        return f"{self._shown}{place.path}{'@' if ':' in reference else ':'}{reference}"

    def check(self, place: Place) -> None:
        """Refuse a repository that is not among the declared ones."""
        below = [entry[:-1] for entry in self._repos if entry.endswith("/*")]
        if self._repos and place.path not in self._repos and not place.path.startswith(tuple(below)):
            message = f"source {self.name} does not allow the repository {place.path}"
            raise AdapterError(Reason.SOURCE_NOT_ALLOWED, message)

    def list_files(self, place: Place) -> Listing:
        """Return the files of an artifact at the digest that a tag means now; an archive is read through for them."""
        where = self.show(place)
        reference = place.revision or DEFAULT_TAG
        if not REPO.fullmatch(place.path):
            raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{where}: {place.path!r} is no name of a repository")
        if not (TAG.fullmatch(reference) or DIGEST.fullmatch(reference)):
            raise AdapterError(
                Reason.ARTIFACT_NOT_FOUND, f"{where}: {reference!r} is neither a tag nor a sha256 digest"
            )
        digest, held = self._artifact(place.path, reference, where)
        if isinstance(held, Files):
            found = tuple(
                FoundFile(name, layer.size, tag=layer.digest, sha256=layer.digest.removeprefix("sha256:"))
                for name, layer in sorted(held.layers.items())
            )
        else:
            found = tuple(file for _, (_, file) in sorted(self._unpacked(place.path, held.layer, where).items()))
        return Listing(Place(place.path, digest), found)

    def fetch(self, place: Place, file: FoundFile, folder: Path) -> None:
        """Write a file; of an archive all files of the adapter at once, so that it is not read again for each."""
        where = self.show(place)
        _, held = self._artifact(place.path, place.revision or DEFAULT_TAG, where)
        if isinstance(held, Archive):
            self._unpack(place.path, held.layer, file, folder, where)
        elif (layer := held.layers.get(file.name)) is not None:
            self._download(place.path, layer, file, folder)
        else:
            raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{where} has no {file.name}")

    def _artifact(self, repo: str, reference: str, where: str) -> tuple[str, Files | Archive]:
        """Return the digest of a manifest, and what it holds; by a digest it is asked for once."""
        with self._mutex:
            known = self._manifests.get((repo, reference))
        if known is not None:
            return reference, known
        digest, body = self._client.manifest(repo, reference)
        held = read_manifest(body, where=where)
        if isinstance(held, Elsewhere):
            digest, body = self._client.manifest(repo, held.digest)
            held = read_manifest(body, where=where)
            if isinstance(held, Elsewhere):
                raise AdapterError(Reason.ARTIFACT_INVALID, f"{where} is an index of an index")
        with self._mutex:
            self._manifests[repo, digest] = held
            if len(self._manifests) > MAX_REMEMBERED:
                self._manifests.popitem(last=False)
        return digest, held

    def _download(self, repo: str, layer: Layer, file: FoundFile, folder: Path) -> None:
        """Append what is missing of a file; the store compares its hash, which is the layer's."""
        with (folder / file.name).open("ab") as target:
            begin = target.tell() if target.tell() <= file.size_bytes else target.truncate(0)
            if begin == file.size_bytes:
                return
            headers = {"range": f"bytes={begin}-"} if begin else {}
            with self._client.open(repo, f"blobs/{layer.digest}", headers) as response:
                if response.status_code != httpx.codes.PARTIAL_CONTENT:
                    begin = target.truncate(0)
                for chunk in response.iter_raw():  # as they come: what a buffer holds is lost when it breaks off
                    begin += len(chunk)
                    if begin > file.size_bytes:
                        raise larger_than_listed(file)
                    target.write(chunk)

    def _unpacked(self, repo: str, layer: Layer, where: str) -> _Unpacked:
        """Return the files of the adapter in an archive, which is read through and compared with its digest; nothing is kept of it."""
        with self._mutex:
            known = self._archives.get(layer.digest)
        if known is not None:
            return known
        seen: dict[str, FoundFile] = {}
        hashed = hashlib.sha256()
        with closing(self._blob(repo, layer, hashed)) as blob, closing(entries(blob.__next__, where=where)) as found:
            for entry in found:
                name = entry.path.rpartition("/")[2]
                if name in SEEN:
                    if entry.path in seen:
                        raise AdapterError(Reason.ARTIFACT_INVALID, f"{where} has {entry.path} twice")
                    content = hashlib.sha256()
                    while chunk := entry.data.read(CHUNK_BYTES):
                        content.update(chunk)
                    seen[entry.path] = FoundFile(name, entry.size_bytes, tag=layer.digest, sha256=content.hexdigest())
        if f"sha256:{hashed.hexdigest()}" != layer.digest:
            raise AdapterError(Reason.DIGEST_MISMATCH, f"{where}: its layer is not {layer.digest}")
        unpacked = {name: (path, seen[path]) for name, path in names_of_adapter(seen, where=where).items()}
        with self._mutex:
            self._archives[layer.digest] = unpacked
            if len(self._archives) > MAX_REMEMBERED:
                self._archives.popitem(last=False)
        return unpacked

    def _unpack(self, repo: str, layer: Layer, file: FoundFile, folder: Path, where: str) -> None:
        target = folder / file.name
        if target.exists() and target.stat().st_size == file.size_bytes:
            return  # it came with another one
        missing = {
            path: found
            for name, (path, found) in self._unpacked(repo, layer, where).items()
            if name in FILES and found.size_bytes
        }
        if file.name not in {found.name for found in missing.values()}:
            raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{where} has no {file.name}")
        with closing(self._blob(repo, layer)) as blob, closing(entries(blob.__next__, where=where)) as coming:
            for entry in coming:
                found = missing.pop(entry.path, None)
                if found is None:
                    continue
                if entry.size_bytes != found.size_bytes:
                    raise AdapterError(Reason.DIGEST_MISMATCH, f"{where}: its layer has changed")
                with (folder / found.name).open("wb") as output:
                    while chunk := entry.data.read(CHUNK_BYTES):
                        output.write(chunk)
                if not missing:
                    return

    def _blob(self, repo: str, layer: Layer, hashed: "hashlib._Hash | None" = None) -> Generator[bytes, None, None]:
        """Yield the bytes of a layer, then empty ones; `hashed` takes them too.

        Raises:
            AdapterError: as the client; ARTIFACT_INVALID it is larger than its manifest says, SOURCE_UNAVAILABLE smaller.
        """
        num_bytes = 0
        with self._client.open(repo, f"blobs/{layer.digest}") as response:
            for chunk in response.iter_raw(CHUNK_BYTES):
                num_bytes += len(chunk)
                if num_bytes > layer.size:
                    raise AdapterError(
                        Reason.ARTIFACT_INVALID, f"layer {layer.digest} has more than {layer.size} bytes"
                    )
                if hashed is not None:
                    hashed.update(chunk)
                yield chunk
        if num_bytes < layer.size:
            message = f"{self.name} gave {num_bytes} of the {layer.size} bytes of layer {layer.digest}"
            raise AdapterError(Reason.SOURCE_UNAVAILABLE, message)
        while True:
            yield b""
