"""Reads from a container registry over HTTP: manifests and blobs, with a login or a token where it asks for one.

Not by the package `oras`: see docs/adr/0015-a-small-client-for-registries.md.
"""

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx
from pydantic import ValidationError

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.sources.base import TIMEOUT_SECONDS
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.adapters.sources.oci_auth import (
    CA,
    Challenge,
    DockerConfig,
    Login,
    Token,
    login_of,
    read_challenge,
)
from lorafleet_inference.adapters.sources.oci_manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_MANIFEST_BYTES
from lorafleet_inference.errors import AdapterError

MAX_REDIRECTS: Final = 5
MAX_TOKEN_BYTES: Final = 1 << 20
MIN_TOKEN_SECONDS: Final = 10.0
"""A token is used until it has so long to live."""
LOGIN_SECONDS: Final = 60.0
"""So long it counts that a registry wants the login itself."""
MAX_RIGHTS: Final = 1024
VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


class RegistryClient:
    """One registry. A login is sent to it and to the token server that it names, a token to it alone."""

    def __init__(self, source: str, endpoint: str, secret: MountedSecret | DockerConfig | None) -> None:
        """`source`: its name, for messages. `endpoint`: http or https, without a path."""
        self._source = source
        self._endpoint = httpx.URL(endpoint.rstrip("/"))
        self._secret = secret
        self._made: tuple[str | None, httpx.Client] | None = None
        self._mutex = threading.Lock()
        self._rights: dict[str, tuple[Login | None, str, float]] = {}
        """By repository: for which login, the Authorization header, and until when."""

    def close(self) -> None:
        """Close idle connections; what is asked later opens new ones."""
        with self._mutex:
            made, self._made = self._made, None
        if made is not None:
            made[1].close()

    def manifest(self, repo: str, reference: str) -> tuple[str, bytes]:
        """Return the digest and the bytes of a manifest or an index, by a tag or a digest.

        Raises:
            AdapterError: as `open`; DIGEST_MISMATCH: it is not what the digest says; ARTIFACT_INVALID: it is too large.
        """
        headers = {"accept": ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))}
        shown = f"the manifest {reference} of {repo}"
        with self.open(repo, f"manifests/{reference}", headers) as response:
            body = _read(response, MAX_MANIFEST_BYTES)
            said = response.headers.get("docker-content-digest", "")
        if body is None:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"{shown} has more than {MAX_MANIFEST_BYTES} bytes")
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        for expected in (said, reference):
            if expected.startswith("sha256:") and expected != digest:
                raise AdapterError(Reason.DIGEST_MISMATCH, f"{shown} has {digest}, and {expected} is expected")
        return digest, body

    @contextmanager
    def open(self, repo: str, path: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        """Yield the answer for `/v2/<repo>/<path>`, its body still to be read.

        Raises:
            AdapterError: ARTIFACT_NOT_FOUND, UNAUTHORIZED, SOURCE_NOT_ALLOWED (it sends to plain http, and was declared
                with https), or the retryable SOURCE_UNAVAILABLE.
        """
        with self._errors():
            response = self._answer(repo, path, {"accept-encoding": "identity", **(headers or {})})
            try:
                if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
                    message = f"{response.url.host} answered {response.status_code} for {repo}"
                    raise AdapterError(_reason(response.status_code), message)
                yield response
            finally:
                response.close()

    def _answer(self, repo: str, path: str, headers: dict[str, str]) -> httpx.Response:
        client = self._client()
        login = login_of(self._secret, self._authority, repo, source=self._source)
        url = self._endpoint.copy_with(path=f"/v2/{repo}/{path}")
        right = self._right(repo, login)
        response = self._get(client, url, headers, right)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            response.close()
            challenge = read_challenge(response.headers.get_list("www-authenticate"))
            right = self._new_right(client, challenge, repo, login)
            response = self._get(client, url, headers, right)
        for _ in range(MAX_REDIRECTS):
            if not response.has_redirect_location:
                return response
            response.close()
            url = url.join(response.headers["location"])
            if url.scheme not in (self._endpoint.scheme, "https"):
                raise AdapterError(
                    Reason.SOURCE_NOT_ALLOWED, f"{self._endpoint.host} sends to {url.scheme}://{url.host} for {repo}"
                )
            response = self._get(client, url, headers, self._right(repo, login) if self._is_own(url) else None)
        response.close()
        raise AdapterError(
            Reason.SOURCE_UNAVAILABLE, f"{self._endpoint.host} redirects more than {MAX_REDIRECTS} times"
        )

    @staticmethod
    def _get(client: httpx.Client, url: httpx.URL, headers: dict[str, str], right: str | None) -> httpx.Response:
        given = headers if right is None else {**headers, "authorization": right}
        return client.send(client.build_request("GET", url, headers=given), stream=True)

    @property
    def _authority(self) -> str:
        """Host and port, as Docker's configuration names it."""
        return self._endpoint.netloc.decode()

    def _is_own(self, url: httpx.URL) -> bool:
        own = self._endpoint
        return (url.scheme, url.host, url.port) == (own.scheme, own.host, own.port)

    def _right(self, repo: str, login: Login | None) -> str | None:
        right = self._rights.get(repo)
        if right is None or right[0] != login or right[2] <= time.monotonic():
            self._rights.pop(repo, None)
            return None
        return right[1]

    def _new_right(self, client: httpx.Client, challenge: Challenge | None, repo: str, login: Login | None) -> str:
        """Return what a challenge is answered with, and remember it."""
        right, seconds = self._answer_to(client, challenge, repo, login)
        if len(self._rights) >= MAX_RIGHTS:
            self._rights.clear()
        self._rights[repo] = login, right, time.monotonic() + seconds
        return right

    def _answer_to(
        self, client: httpx.Client, challenge: Challenge | None, repo: str, login: Login | None
    ) -> tuple[str, float]:
        """Return an Authorization header and for how many seconds it will do."""
        host = self._endpoint.host
        if challenge is None:
            raise AdapterError(
                Reason.UNAUTHORIZED, f"{host} answered 401 for {repo}, and asks for nothing that is known"
            )
        if challenge.realm is None:
            if login is None:
                raise AdapterError(Reason.UNAUTHORIZED, f"{host} wants a login for {repo}; none is declared")
            return login.basic, LOGIN_SECONDS
        realm = httpx.URL(challenge.realm)
        if realm.scheme not in (self._endpoint.scheme, "https"):
            raise AdapterError(Reason.UNAUTHORIZED, f"{host} wants tokens of {realm.scheme}://{realm.host}")
        wanted = {"scope": f"repository:{repo}:pull"}
        if challenge.service is not None:
            wanted["service"] = challenge.service
        headers = {} if login is None else {"authorization": login.basic}
        asked = client.build_request("GET", realm.copy_merge_params(wanted), headers=headers)
        response = client.send(asked, stream=True)
        try:
            if response.status_code != httpx.codes.OK:
                # whoever may not have a token is told so by 400, 401 or 403
                reason = Reason.UNAUTHORIZED if 400 <= response.status_code < 404 else _reason(response.status_code)
                raise AdapterError(reason, f"{realm.host} answered {response.status_code} for a token for {repo}")
            body = _read(response, MAX_TOKEN_BYTES) or b""
        finally:
            response.close()
        try:
            answer = Token.model_validate_json(body)
        except ValidationError:
            answer = Token()
        token = answer.token or answer.access_token or ""
        if not VISIBLE.fullmatch(token):
            raise AdapterError(Reason.SOURCE_UNAVAILABLE, f"{realm.host} gave no token for {repo}")
        return f"Bearer {token}", answer.expires_in - MIN_TOKEN_SECONDS

    def _client(self) -> httpx.Client:
        """Return the client, a new one where the authorities that it trusts have changed."""
        authorities = None if self._secret is None else self._secret.read(CA)
        with self._mutex:
            if self._made is None or self._made[0] != authorities:
                context = httpx.create_ssl_context()
                if authorities is not None:
                    try:
                        context.load_verify_locations(cadata=authorities)
                    except (ssl.SSLError, ValueError) as error:
                        message = f"{CA} of source {self._source} holds no certificates"
                        raise AdapterError(Reason.UNAUTHORIZED, message) from error
                self._made = authorities, httpx.Client(verify=context, timeout=TIMEOUT_SECONDS, follow_redirects=False)
            return self._made[1]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the client raises into reasons; server texts stay out of messages."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            why = type(error).__name__
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, ssl.SSLCertVerificationError):
                    why = f"its certificate is not trusted: {cause.verify_message}"
                cause = cause.__cause__ or cause.__context__
            message = f"{self._source}: {self._endpoint.host} did not answer: {why}"
            raise AdapterError(Reason.SOURCE_UNAVAILABLE, message) from error


def _read(response: httpx.Response, max_bytes: int) -> bytes | None:
    """Return a body; None where it is larger."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


def _reason(status: int) -> Reason:
    if status in (401, 403):
        return Reason.UNAUTHORIZED
    return Reason.ARTIFACT_NOT_FOUND if status in (400, 404) else Reason.SOURCE_UNAVAILABLE
