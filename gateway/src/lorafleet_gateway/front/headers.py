"""Which headers go through. Pure."""

import random
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy

from lorafleet_contract.names import HEADER_REVISION, HEADER_SESSION
from lorafleet_contract.usage import HEADER_USAGE
from lorafleet_gateway.errors import InvalidRequest

REQUEST_ID: Final = "x-request-id"
AUTHORIZATION: Final = "authorization"
_LEGAL_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_LEGAL_REVISION: Final = re.compile(r"[0-9a-f]{12}")
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""They speak of one connection, not of the request."""
_NOT_FOR_PODS: Final = HOP_BY_HOP | {"host", "content-length", "expect", "authorization", "cookie", HEADER_USAGE}
"""Beside these: what is set anew, and what a client tells the front door alone."""
_NOT_FOR_CLIENTS: Final = HOP_BY_HOP | {HEADER_USAGE}

Given = CIMultiDictProxy[str]
NO_TRACE: Final[Mapping[str, str]] = MappingProxyType({})


def request_id_of(given: Given) -> str:
    """Return the client's request id if it is legal, else a new one."""
    name = given.get(REQUEST_ID, "")
    return name if _LEGAL_ID.fullmatch(name) else f"{random.getrandbits(128):032x}"


def checked_revision(revision: str, what: str, *, param: str | None = None) -> str:
    """Return a revision that has the form of one; `what` of the request is it.

    Raises:
        InvalidRequest: it has not.
    """
    if not _LEGAL_REVISION.fullmatch(revision):
        raise InvalidRequest(f"{what} has to be 12 hexadecimal digits", param=param)
    return revision


def asked_revision(given: Given, in_name: str | None) -> str | None:
    """Return the revision that a client insists on, by header or as `name@revision`; None: the stable one.

    Raises:
        InvalidRequest: it is none, or they differ.
    """
    in_header = given.get(HEADER_REVISION)
    if in_header is not None:
        checked_revision(in_header, HEADER_REVISION, param=HEADER_REVISION)
    if in_name is not None:
        checked_revision(in_name, "what follows @ in model", param="model")
    if in_header is not None and in_name is not None and in_header != in_name:
        raise InvalidRequest(f"model means another revision than the header {HEADER_REVISION}", param="model")
    return in_name or in_header


def sticky_key(given: Given, *, request_id: str, key_name: str = "") -> str:
    """Return what decides which of several revisions answers: the client's session, else its key's name, else the request's id.

    Args:
        given: headers of the request.
        request_id: what both log.
        key_name: of the client's API key; empty where it does not matter.
    """
    if session := given.get(HEADER_SESSION):
        return f"session {session}"
    return f"key {key_name}" if key_name else f"request {request_id}"


def answered_revision(given: Given) -> str | None:
    """Return the revision that a pod says it answered with; None where it says none that can be one."""
    revision = given.get(HEADER_REVISION, "")
    return revision if _LEGAL_REVISION.fullmatch(revision) else None


def for_pod(
    given: Given,
    *,
    request_id: str,
    revision: str | None,
    with_key: bool = False,
    asks_usage: bool = False,
    trace: Mapping[str, str] = NO_TRACE,
) -> CIMultiDict[str]:
    """Return the headers of a request to a pod.

    Args:
        given: those of the client.
        request_id: what both log.
        revision: the one to answer with.
        with_key: whether the pod sees the client's key.
        asks_usage: whether the pod is to tell how many tokens it used.
        trace: the place in a trace that replaces the client's; where it is empty, the client's goes through.
    """
    headers = _through(given, _NOT_FOR_PODS)
    headers[REQUEST_ID] = request_id
    headers.update(trace)
    if with_key and AUTHORIZATION in given:
        headers[AUTHORIZATION] = given[AUTHORIZATION]
    if asks_usage:
        headers[HEADER_USAGE] = "1"
    if revision is not None:
        headers[HEADER_REVISION] = revision
    else:
        headers.popall(HEADER_REVISION, None)
    return headers


def for_client(given: Given) -> CIMultiDict[str]:
    """Return the headers of an answer to a client."""
    return _through(given, _NOT_FOR_CLIENTS)


def _through(given: Given, dropped: frozenset[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for value in given.getall("connection", ()) for name in value.split(",")}
    kept = CIMultiDict[str]()
    for name, value in given.items():
        lower = name.lower()
        if lower not in dropped and lower not in named:
            kept.add(name, value)
    return kept
