"""Declared sources by name, and the sources that `serve --adapter` names: the one place that knows all kinds."""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from lorafleet_common.errors import ConfigError
from lorafleet_contract.names import REVISION_MARK
from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterSource, SourceRef, VolumePlace
from lorafleet_inference.adapters.files import FoundFile
from lorafleet_inference.adapters.sources.base import Kind, Listing, Place, Source
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.adapters.sources.folder import FolderSource, LocalDisk
from lorafleet_inference.adapters.sources.hub import HubSource
from lorafleet_inference.adapters.sources.oci import OciSource
from lorafleet_inference.adapters.sources.oci_auth import DOCKER_HUB, DOCKER_HUB_API, DockerConfig
from lorafleet_inference.adapters.sources.s3 import S3Source
from lorafleet_inference.errors import AdapterError

OCI: Final = "oci://"
_SHOWN = re.compile(r"[ -~]{1,512}")
"""Answers name the adapter in a header."""


class Refusing:
    """A source that refuses everything, for a reason."""

    kind: Final = None

    def __init__(self, name: str, reason: Reason, message: str) -> None:
        self.name = name
        self._reason = reason
        self._message = message

    def show(self, place: Place) -> str:
        """Name a place in messages."""
        return f"{self.name}:{place.path}"

    def check(self, _: Place) -> None:
        """Refuse."""
        raise AdapterError(self._reason, self._message)

    def list_files(self, place: Place) -> Listing:
        """Refuse."""
        self.check(place)
        raise AssertionError("refused before")

    def fetch(self, place: Place, _: FoundFile, __: Path) -> None:
        """Refuse."""
        self.check(place)

    def close(self) -> None:
        """There is nothing to close."""


class Sources:
    """All sources of a pod."""

    def __init__(self, declared: Iterable[AdapterSource], *, volumes_dir: Path, credentials_dir: Path) -> None:
        self._credentials_dir = credentials_dir
        self._volumes_dir = volumes_dir
        self._places = tuple(declared)
        self._declared = {source.name: self._source(source) for source in self._places}

    def of(self, ref: SourceRef) -> tuple[Source, Place]:
        """Return the declared source of a reference, or one that refuses everything, and the place in it."""
        source = self._declared.get(ref.name) or Refusing(
            ref.name, Reason.SOURCE_NOT_ALLOWED, f"the base model declares no source {ref.name!r}"
        )
        return source, Place(ref.repo or ref.path or "", ref.revision)

    def close(self) -> None:
        """Let go of connections."""
        for source in self._declared.values():
            source.close()

    def ref_of(self, text: str) -> SourceRef:
        """Return the declared source and the place in it that a path, `s3://…`, `oci://…` or hub repository lies in.

        Raises:
            AdapterError: SOURCE_NOT_ALLOWED: it lies in none.
        """
        for declared in self._places:
            fields = self._place_in(declared, text)
            if fields is None:
                continue
            with suppress(ValidationError):
                return SourceRef(name=declared.name, **fields)
        raise AdapterError(Reason.SOURCE_NOT_ALLOWED, f"{text!r} lies in no source that the base model declares")

    def place_of(self, kind: Kind, text: str) -> tuple[Source, Place]:
        """Return what a request means that names an adapter and the kind of its source: as `ref_of`, among sources of the kind.

        Where one bucket, registry or volume is declared, a path in it will do.

        Raises:
            AdapterError: SOURCE_NOT_ALLOWED: it lies in none.
        """
        of_kind = [one for one in self._places if self._declared[one.name].kind is kind]
        if _SHOWN.fullmatch(text) and (kind in (Kind.HUB, Kind.OCI) or REVISION_MARK not in text):
            for declared in of_kind:
                fields = self._place_in(declared, text)
                if fields is None and kind is not Kind.HUB and len(of_kind) == 1:
                    fields = _repo_fields(text) if kind is Kind.OCI else {"path": text.rstrip("/")}
                if fields is not None:
                    with suppress(ValidationError):
                        return self.of(SourceRef(name=declared.name, **fields))
        raise AdapterError(
            Reason.SOURCE_NOT_ALLOWED, f"it lies in no source of the kind {kind} that the base model declares"
        )

    def _place_in(self, declared: AdapterSource, text: str) -> dict[str, str | None] | None:
        if declared.volume is not None:
            root = self._volume_root(declared.name, declared.volume)
            return {"path": text.removeprefix(f"{root}/")} if text.startswith(f"{root}/") else None
        if declared.s3 is not None:
            prefix = f"s3://{declared.s3.bucket}/{declared.s3.prefix.strip('/')}".rstrip("/") + "/"
            return {"path": text.removeprefix(prefix).strip("/")} if text.startswith(prefix) else None
        if declared.oci is not None:
            prefix = f"{OCI}{urlsplit(declared.oci.endpoint).netloc}/"
            fields = _repo_fields(text.removeprefix(prefix)) if text.startswith(prefix) else None
        else:
            repo, _, revision = text.removeprefix("hf:").partition("@")
            fields = {"repo": repo, "revision": revision or None} if repo.count("/") <= 1 else None
        if fields is None or fields["repo"] is None:
            return None
        try:
            self._declared[declared.name].check(Place(fields["repo"]))
        except AdapterError:
            return None
        return fields

    def _volume_root(self, name: str, volume: VolumePlace) -> Path:
        return self._volumes_dir / name / volume.path.strip("/")

    def _source(self, declared: AdapterSource) -> Source:
        if declared.volume is not None:
            root = self._volume_root(declared.name, declared.volume)
            return FolderSource(declared.name, root, boundary=self._volumes_dir / declared.name)
        ref = declared.credentials_secret_ref
        secret = MountedSecret(self._credentials_dir / declared.name, ref.name if ref is not None else None)
        if declared.hugging_face is not None:
            hub = declared.hugging_face
            _check_endpoint(declared.name, hub.endpoint)
            return HubSource(declared.name, endpoint=hub.endpoint, repos=tuple(hub.repos), secret=secret)
        if declared.oci is not None:
            oci = declared.oci
            _check_endpoint(declared.name, oci.endpoint)
            return OciSource(declared.name, oci.endpoint, repos=tuple(oci.repos), secret=secret if ref else None)
        assert declared.s3 is not None, "a declared source has one place"
        bucket = declared.s3
        _check_endpoint(declared.name, bucket.endpoint)
        return S3Source(
            declared.name,
            bucket.bucket,
            prefix=bucket.prefix,
            endpoint=bucket.endpoint,
            region=bucket.region,
            secret=secret if ref is not None else None,
        )


def ad_hoc(text: str) -> tuple[Source, Place]:
    """Return the source and the place that `--adapter NAME=TEXT` means: a folder, `hf:REPO[@REVISION]`, `s3://…` or `oci://…`.

    Raises:
        AdapterError: BAD_REQUEST: it is none of these.
    """
    if text.startswith("hf:"):
        repo, _, revision = text.removeprefix("hf:").partition("@")
        return HubSource("hf", endpoint=None, secret=None), Place(repo, revision or None)
    if text.startswith("s3://"):
        bucket, _, path = text.removeprefix("s3://").partition("/")
        if not bucket or not path.strip("/"):
            raise AdapterError(Reason.BAD_REQUEST, f"{text} is not s3://BUCKET/PREFIX")
        source = S3Source("s3", bucket, prefix="", endpoint=None, region=None, secret=None, shown=f"s3://{bucket}/")
        return source, Place(path.strip("/"))
    if text.startswith(OCI):
        return _ad_hoc_oci(text)
    return LocalDisk(), Place(str(Path(text).absolute()).removeprefix("/"))


def _ad_hoc_oci(text: str) -> tuple[Source, Place]:
    """Return an artifact of any registry; one on this machine speaks plain http, as Docker has it."""
    authority, _, rest = text.removeprefix(OCI).partition("/")
    fields = _repo_fields(rest)
    host = authority.partition(":")[0]
    if not host or not fields["repo"]:
        raise AdapterError(Reason.BAD_REQUEST, f"{text} is not oci://HOST/REPO, with :TAG or @DIGEST behind it")
    scheme = "http" if host == "localhost" or host.startswith("127.") else "https"
    api = DOCKER_HUB_API if host in DOCKER_HUB else authority
    source = OciSource("oci", f"{scheme}://{api}", secret=DockerConfig(), shown=f"{OCI}{authority}/")
    return source, Place(fields["repo"], fields["revision"])


def _repo_fields(text: str) -> dict[str, str | None]:
    """Return what `REPO[:TAG|@DIGEST]` says."""
    repo, mark, revision = text.partition("@" if "@" in text else ":")
    return {"repo": repo or None, "revision": revision if mark else None}


def _check_endpoint(source: str, endpoint: str | None) -> None:
    if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
        raise ConfigError("--adapter-sources", f"source {source}: endpoint {endpoint!r} is no http or https URL")
