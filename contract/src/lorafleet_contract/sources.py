"""Where adapters and base models come from.

A *declared* source is a place that the platform engineer allows (`BaseModelDeployment.spec.adapterSources[]`). A *reference*
names one of them and a place in it (`LoraAdapter.spec.source`). A *resolved* source is pinned to content.
"""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from lorafleet_contract.base import Observed

SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
RelativePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._/=+@ -]*$", max_length=512)]
"""A path below the root of a source, as object stores hold them; `..` components are refused by the validators that use it."""
HubRepo = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$", max_length=200)
]


Repo = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$", max_length=255)
]
"""A repository of a hub or of a container registry; a hub's has at most one slash."""


def check_relative(path: str | None) -> None:
    """Refuse a path that could leave its root.

    Raises:
        ValueError: a component is empty, `.` or `..`.
    """
    if path is not None and any(part in ("", ".", "..") for part in path.rstrip("/").split("/")):
        raise ValueError(f"path {path!r} has an empty, '.' or '..' component")


class SecretRef(Observed):
    """A Secret in the namespace of the resource that names it.

    Keys: `token` for a hub; `accessKeyId`, `secretAccessKey` and optionally `sessionToken` for S3; for a container registry
    `.dockerconfigjson`, as in a Secret of the type kubernetes.io/dockerconfigjson, or `username` and `password`, and
    optionally `ca.crt`.
    """

    name: str


class HuggingFacePlace(Observed):
    """A hub: the public one, or any that speaks its download protocol."""

    endpoint: str | None = None
    """Base URL, http or https; default: the environment's HF_ENDPOINT, else the public hub."""
    repos: list[str] = []
    """If not empty, only these repositories; an entry that ends in `/*` allows an organisation."""
    credentials_secret_ref: SecretRef | None = None


class S3Place(Observed):
    """A bucket, or a prefix of one."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    credentials_secret_ref: SecretRef | None = None


class OciPlace(Observed):
    """A container registry that speaks the OCI distribution protocol; adapters are artifacts in its repositories."""

    endpoint: str
    """Base URL; http only where it says so."""
    repos: list[str] = []
    """If not empty, only these repositories; an entry that ends in `/*` allows all below it."""
    credentials_secret_ref: SecretRef | None = None


class VolumePlace(Observed):
    """A PersistentVolumeClaim in the namespace of the base, mounted read-only; `path` is a folder in it."""

    claim_name: str
    path: str = ""


class AdapterSource(Observed):
    """A declared source: a name and exactly one place."""

    name: SourceName
    hugging_face: HuggingFacePlace | None = None
    oci: OciPlace | None = None
    s3: S3Place | None = None
    volume: VolumePlace | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.hugging_face, self.oci, self.s3, self.volume)) != 1:
            raise ValueError(f"source {self.name!r} needs exactly one of huggingFace, oci, s3, volume")
        return self

    @property
    def takes_repo(self) -> bool:
        """Whether a reference names a repository in it; else a path."""
        return self.hugging_face is not None or self.oci is not None

    @property
    def repos(self) -> list[str]:
        """The repositories that it is narrowed down to; empty: all."""
        place = self.hugging_face or self.oci
        return [] if place is None else place.repos

    @property
    def credentials_secret_ref(self) -> SecretRef | None:
        """The Secret that opens it."""
        place = self.hugging_face or self.oci or self.s3
        return None if place is None else place.credentials_secret_ref


class SourceRef(Observed):
    """A place in a declared source: `repo` for a hub or a container registry, `path` for S3 and volumes."""

    name: SourceName
    repo: Repo | None = None
    path: RelativePath | None = None
    revision: Annotated[str, StringConstraints(max_length=200)] | None = None
    """A hub's branch, tag or commit; a registry's tag, or the digest of a manifest; nothing else has revisions."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.repo is None) == (self.path is None):
            raise ValueError("exactly one of repo, path")
        if self.path is not None and self.revision is not None:
            raise ValueError("revision goes with repo only")
        check_relative(self.path)
        return self


class SourceFile(Observed):
    """One file of a resolved adapter."""

    path: RelativePath
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    version_id: str | None = None
    """The S3 version that was read, where the bucket keeps versions."""


class AdapterFacts(Observed):
    """What validation learned from an adapter's config and safetensors headers."""

    rank: int
    """The largest rank of any module."""
    size_bytes: int
    """Bytes of the safetensors files."""
    target_modules: list[str]
    """Last name components of the modules it changes, sorted."""
    base_model_name: str | None = None
    """`base_model_name_or_path` of its config: information only."""
    invocation_tokens: list[int] | None = None
    """Token ids from whose last occurrence in a prompt on it is computed (aLoRA); None: from the first token on."""
    memory_pages: int | None = None
    """Pages of adapter memory that all that it holds fills on pods of this base, about; None where a pod did not say."""


class ResolvedSource(Observed):
    """A source pinned to content: what catalogues carry."""

    ref: SourceRef
    """The reference with `revision` replaced by the commit, or by the digest of the manifest, where the source has them."""
    digest: Digest
    files: Annotated[list[SourceFile], Field(max_length=64)]
    facts: AdapterFacts
