"""Who asks a container registry: the logins of a Secret or of Docker's configuration, and what a registry asks for."""

import base64
import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.errors import AdapterError

DOCKER_CONFIG: Final = ".dockerconfigjson"
CA: Final = "ca.crt"
DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
"""Names of one registry."""
DOCKER_HUB_API: Final = "registry-1.docker.io"
PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Login:
    """A name and its password; never shown."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """Docker's configuration of whoever started the pod, in the place of a Secret."""

    declared: None = None

    def read(self, key: str) -> str | None:
        """Return the configuration; None where there is none, and for any other key.

        Raises:
            AdapterError: UNAUTHORIZED: it cannot be read.
        """
        if key != DOCKER_CONFIG:
            return None
        folder = os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
        try:
            return (Path(folder) / "config.json").read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise AdapterError(Reason.UNAUTHORIZED, "Docker's config.json cannot be read") from error


class _Auth(BaseModel):
    model_config = ConfigDict(extra="ignore")
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore")
    auths: dict[str, _Auth] = {}


class Token(BaseModel):
    """What a token server answers; never shown."""

    model_config = ConfigDict(extra="ignore")
    token: str | None = Field(default=None, repr=False)
    access_token: str | None = Field(default=None, repr=False)
    expires_in: Annotated[float, Field(ge=0, le=1e9)] = 60.0
    """Seconds; the default is the protocol's."""


def login_of(secret: MountedSecret | DockerConfig | None, host: str, repo: str, *, source: str) -> Login | None:
    """Return the login for a repository of a registry; None: it is asked without.

    Raises:
        AdapterError: UNAUTHORIZED: the declared Secret has none for it, or cannot be read.
    """
    if secret is None:
        return None
    username, password = secret.read("username"), secret.read("password")
    if username is not None and password is not None:
        return Login(username, password)
    text = secret.read(DOCKER_CONFIG)
    login = _login_in(text, host, repo, source=source) if text is not None else None
    if login is None and secret.declared is not None and (text is not None or secret.read(CA) is None):
        raise AdapterError(
            Reason.UNAUTHORIZED,
            f"Secret {secret.declared} of source {source} has no username and password for {host}/{repo}",
        )
    return login


def _login_in(text: str, host: str, repo: str, *, source: str) -> Login | None:
    try:
        config = _Config.model_validate_json(text)
        fits = {key: _fit(key, host, repo) for key in config.auths}
        best = max(fits, key=fits.__getitem__, default="")
        auth = config.auths[best] if fits.get(best, -1) >= 0 else _Auth()
        if auth.username and auth.password:
            return Login(auth.username, auth.password)
        if auth.identitytoken or auth.registrytoken:
            given = "identitytoken" if auth.identitytoken else "registrytoken"
            message = f"{DOCKER_CONFIG} of source {source} has no username and password for {host}, but {given}"
            raise AdapterError(Reason.UNAUTHORIZED, message)
        username, _, password = base64.b64decode(auth.auth or "", validate=True).decode().partition(":")
    except (ValidationError, ValueError):  # which may show what it has read
        message = f"{DOCKER_CONFIG} of source {source} is not as Docker writes it"
        raise AdapterError(Reason.UNAUTHORIZED, message) from None
    return Login(username, password) if username and password else None


def _fit(key: str, host: str, repo: str) -> int:
    """Return how well an entry of Docker's configuration fits a repository: a host, which may have `*`, and maybe a path.

    The longest path counts; -1: it is for another one.
    """
    entry_host, _, path = key.rpartition("://")[2].partition("/")
    path = path.strip("/")
    if path in ("v1", "v2") or {entry_host, host} <= DOCKER_HUB:
        path = ""
    labels, wanted = host.split("."), entry_host.split(".")
    is_host = len(labels) == len(wanted) and all(map(fnmatchcase, labels, wanted))
    if not is_host and not {entry_host, host} <= DOCKER_HUB:
        return -1
    if path and not f"{repo}/".startswith(f"{path}/"):
        return -1
    return 2 * len(path) + (entry_host == host)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for: a token of a server, or a login (`realm` None)."""

    realm: str | None = None
    service: str | None = None


def read_challenge(headers: list[str]) -> Challenge | None:
    """Return what `WWW-Authenticate` asks for; a token before a login; None: nothing that is known."""
    found: Challenge | None = None
    for header in headers:
        scheme, _, rest = header.strip().partition(" ")
        parameters = {name.lower(): value for name, value in PARAMETER.findall(rest)}
        if scheme.lower() == "bearer" and urlsplit(parameters.get("realm", "")).scheme in ("http", "https"):
            return Challenge(parameters["realm"], parameters.get("service"))
        if scheme.lower() == "basic":
            found = Challenge()
    return found
