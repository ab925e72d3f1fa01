"""Adapters in a bucket: AWS, or any server that speaks S3."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import FILES, PICKLED, FoundFile
from lorafleet_inference.adapters.sources.base import TIMEOUT_SECONDS, Kind, Listing, Place
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.errors import AdapterError

PART_BYTES = 8 << 20
PARALLEL_PARTS = 4
MAX_OBJECTS = 5000
"""Objects that are looked at below one place."""
_NOT_FOUND = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound", "404"})


@dataclass(frozen=True, slots=True)
class _Credentials:
    """Of a mounted Secret; all None: what the environment gives, and if that is nothing, anonymous."""

    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None


class S3Source:
    """A bucket, or a prefix of one; `secret` None: credentials are those of the environment."""

    kind: Final = Kind.S3

    def __init__(
        self,
        name: str,
        bucket: str,
        *,
        prefix: str,
        endpoint: str | None,
        region: str | None,
        secret: MountedSecret | None,
        shown: str | None = None,
    ) -> None:
        self.name = name
        self._shown = f"{name}:" if shown is None else shown
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._endpoint = endpoint
        self._region = region
        self._secret = secret
        self._made: tuple[_Credentials, Any] | None = None
        self._mutex = threading.Lock()

    def close(self) -> None:
        """Close idle connections; requests under way end on theirs, and the next one opens new ones."""
        made, self._made = self._made, None
        if made is not None:
            made[1].close()

    def show(self, place: Place) -> str:
        """Name a place in messages."""
        return f"{self._shown}{place.path}"

    def check(self, place: Place) -> None:
        """Every path below the prefix is allowed."""

    def list_files(self, place: Place) -> Listing:
        """Return the files of an adapter that lie at a place, with their versions where the bucket keeps versions."""
        prefix, found = self._key(place, ""), []
        with self._errors(place):
            client = self._client()
            for key, size in self._objects(client, prefix, Delimiter="/"):
                name = key.removeprefix(prefix)
                if name in FILES:
                    found.append(self._found(client, key, name))
                elif name in PICKLED:
                    found.append(FoundFile(name, size))
        return Listing(place, tuple(found))

    def list_below(self, place: Place, wanted: Callable[[str], bool]) -> Listing:
        """Return those files at a place, and in folders below it, whose path from there is wanted; it is their name.

        Raises:
            AdapterError: as `list_files`.
        """
        prefix = self._key(place, "").removeprefix("/")
        with self._errors(place):
            client = self._client()
            keys = [key for key, _ in self._objects(client, prefix) if wanted(key.removeprefix(prefix))]
            found = [self._found(client, key, key.removeprefix(prefix)) for key in keys]
        return Listing(place, tuple(found))

    def _objects(self, client: Any, prefix: str, **options: str) -> Iterator[tuple[str, int]]:
        """Keys and bytes of the first objects whose keys begin like this."""
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix, PaginationConfig={"MaxItems": MAX_OBJECTS}, **options
        )
        for page in pages:
            for entry in page.get("Contents", ()):
                yield entry["Key"], entry["Size"]

    def _found(self, client: Any, key: str, name: str) -> FoundFile:
        """A listing tells neither versions nor, on every server, the same tags."""
        head = client.head_object(Bucket=self._bucket, Key=key)
        version = head.get("VersionId")
        return FoundFile(name, head["ContentLength"], None if version == "null" else version, head["ETag"])

    def fetch(self, place: Place, file: FoundFile, folder: Path) -> None:
        """Read an object in parts, several at a time, and append them in order."""
        request = {"Bucket": self._bucket, "Key": self._key(place, file.name)}
        if file.version_id is not None:
            request["VersionId"] = file.version_id
        elif file.tag:
            request["IfMatch"] = file.tag

        def part(begin: int) -> bytes:
            end = min(begin + PART_BYTES, file.size_bytes)
            answer = client.get_object(**request, Range=f"bytes={begin}-{end - 1}")
            with closing(answer["Body"]) as body:
                if file.tag not in ("", answer.get("ETag")):  # not every server honours IfMatch
                    message = f"{file.name} of {self.show(place)} has just been replaced"
                    raise AdapterError(Reason.SOURCE_UNAVAILABLE, message)
                data: bytes = body.read(end - begin + 1)
            if len(data) != end - begin:
                raise AdapterError(
                    Reason.SOURCE_UNAVAILABLE,
                    f"{self.show(place)} gave {len(data)} of {end - begin} bytes of {file.name}",
                )
            return data

        with self._errors(place), (folder / file.name).open("ab") as target:
            client = self._client()
            if target.tell() > file.size_bytes:
                target.truncate(0)
            with ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="s3-part") as pool:
                pending: deque[Future[bytes]] = deque()
                for begin in range(target.tell(), file.size_bytes, PART_BYTES):
                    pending.append(pool.submit(part, begin))
                    if len(pending) == PARALLEL_PARTS:
                        target.write(pending.popleft().result())
                while pending:
                    target.write(pending.popleft().result())

    def _key(self, place: Place, name: str) -> str:
        return "/".join(part for part in (self._prefix, place.path.strip("/")) if part) + f"/{name}"

    def _client(self) -> Any:
        credentials = self._credentials()
        with self._mutex:  # making one is slow and not safe beside another thread
            if self._made is None or self._made[0] != credentials:
                self.close()
                self._made = credentials, self._new_client(credentials)
            return self._made[1]

    def _credentials(self) -> _Credentials:
        if self._secret is None:
            return _Credentials()
        read = self._secret.read
        return _Credentials(read("accessKeyId"), read("secretAccessKey"), read("sessionToken"))

    def _new_client(self, credentials: _Credentials) -> Any:
        session = boto3.Session(
            aws_access_key_id=credentials.access_key_id,
            aws_secret_access_key=credentials.secret_access_key,
            aws_session_token=credentials.session_token,
            region_name=self._region,
        )
        config = Config(
            connect_timeout=TIMEOUT_SECONDS,
            read_timeout=TIMEOUT_SECONDS,
            retries={"total_max_attempts": 1},  # the store tries again
            max_pool_connections=4 * PARALLEL_PARTS,
            signature_version=None if session.get_credentials() is not None else UNSIGNED,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if self._endpoint is not None else None,
        )
        region = session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=self._endpoint, region_name=region, config=config)

    @contextmanager
    def _errors(self, place: Place) -> Iterator[None]:
        """Turn what the client raises into reasons; server texts stay out of messages, they may repeat secrets."""
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            raise AdapterError(_reason(code, status), f"{self.show(place)}: S3 answered {status} {code}") from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise AdapterError(Reason.UNAUTHORIZED, f"{self.show(place)}: no credentials: {error}") from error
        except (BotoCoreError, ValueError) as error:
            kind = type(error).__name__
            raise AdapterError(Reason.SOURCE_UNAVAILABLE, f"{self.show(place)}: S3 did not answer: {kind}") from error


def _reason(code: str, status: int) -> Reason:
    if code in _NOT_FOUND or status == 404:
        return Reason.ARTIFACT_NOT_FOUND
    if status >= 500 or status in (0, 408, 412, 429):  # 412: it has just been replaced
        return Reason.SOURCE_UNAVAILABLE
    return Reason.UNAUTHORIZED
