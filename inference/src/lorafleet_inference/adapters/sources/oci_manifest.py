"""What an OCI artifact holds of an adapter: its manifest, read from bytes; pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import CONFIG, FILES, PICKLED
from lorafleet_inference.errors import AdapterError

MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MAX_MANIFEST_BYTES: Final = 4 << 20
MAX_LAYERS: Final = 1000
TITLE = "org.opencontainers.image.title"
"""The annotation of a layer that is one file: its path."""
UNPACK = "io.deis.oras.content.unpack"
"""`true` on a layer that is a folder: an archive that `oras pull` unpacks."""
ATTESTATION = "vnd.docker.reference.type"
ARCHIVE_TYPES: Final = (".tar", ".tar+gzip", ".tar.gzip")
"""Ends of media types; others, as `+zstd`, are not unpacked."""
ARCHIVE_NAMES: Final = (".tar", ".tar.gz", ".tgz")
SEEN = FILES | frozenset(PICKLED)
Size = Annotated[int, Field(ge=0, le=2**53)]


class _Read(BaseModel):
    """What others write has more fields than are looked at."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")


class Layer(_Read):
    """A blob and what it is."""

    media_type: str = ""
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: Size
    annotations: dict[str, str] | None = None

    @property
    def title(self) -> str | None:
        """The file that it is, as `oras push` names it; None: it has none, or is a folder."""
        annotations = self.annotations or {}
        return None if annotations.get(UNPACK) == "true" else annotations.get(TITLE)

    @property
    def is_archive(self) -> bool:
        """Whether it is a tar archive: by its name, or by its type where it has none."""
        title = self.title
        return self.media_type.endswith(ARCHIVE_TYPES) if title is None else title.endswith(ARCHIVE_NAMES)


class _Manifest(_Read):
    schema_version: int = 2
    media_type: str = ""
    layers: Annotated[list[Layer], Field(max_length=MAX_LAYERS)] | None = None
    manifests: Annotated[list[Layer], Field(max_length=MAX_LAYERS)] | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """An adapter of one layer a file: by the name in its folder."""

    layers: dict[str, Layer]


@dataclass(frozen=True, slots=True)
class Archive:
    """An adapter in one archive."""

    layer: Layer


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """An index of one manifest."""

    digest: str


def read_manifest(body: bytes, *, where: str) -> Files | Archive | Elsewhere:
    """Return how an adapter lies in an artifact.

    Raises:
        AdapterError: ARTIFACT_INVALID: it is no manifest, or of no kind that holds an adapter; the message says what it has.
    """
    try:
        manifest = _Manifest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"]) or "document"
        raise _invalid(f"{where}: its manifest is not valid: {at}: {first['msg']}") from error
    if manifest.manifests is not None:
        return _only(manifest.manifests, where)
    if not manifest.layers:
        raise _invalid(f"{where} has no layers")
    titled = {layer.title: layer for layer in manifest.layers if layer.title is not None}
    if names := names_of_adapter(titled, where=where):
        return Files({name: titled[path] for name, path in names.items()})
    archives = [layer for layer in manifest.layers if layer.is_archive]
    if len(archives) == 1:
        return Archive(archives[0])
    has = ", ".join(sorted({layer.title or layer.media_type or "a layer without a type" for layer in manifest.layers}))
    message = (
        f"has {len(archives)} archives, and one is taken" if archives else f"has neither {CONFIG} nor a tar archive"
    )
    raise _invalid(f"{where} {message}; its layers are {has[:400]}")


def names_of_adapter(paths: Iterable[str], *, where: str) -> dict[str, str]:
    """Return the path of each file of the adapter among paths: those beside the config that lies highest; empty without one.

    Raises:
        AdapterError: ARTIFACT_INVALID: several lie highest.
    """
    split = {path: [part for part in path.split("/") if part not in ("", ".")] for path in paths}
    folders = sorted((parts[:-1] for parts in split.values() if parts and parts[-1] == CONFIG), key=len)
    if not folders:
        return {}
    if len(folders) > 1 and len(folders[0]) == len(folders[1]):
        raise _invalid(f"{where} has more than one {CONFIG}: in {'/'.join(folders[0])} and {'/'.join(folders[1])}")
    return {
        parts[-1]: path for path, parts in split.items() if parts and parts[:-1] == folders[0] and parts[-1] in SEEN
    }


def _only(manifests: list[Layer], where: str) -> Elsewhere:
    artifacts = [one for one in manifests if ATTESTATION not in (one.annotations or {})]
    if len(artifacts) != 1:
        raise _invalid(f"{where} is an index of {len(artifacts)} artifacts; name one by its digest")
    return Elsewhere(artifacts[0].digest)


def _invalid(message: str) -> AdapterError:
    return AdapterError(Reason.ARTIFACT_INVALID, message)
