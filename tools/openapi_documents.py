"""The OpenAPI documents that are committed: a pod's, and a gateway's, whose operations are those of pods that it answers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from lorafleet_contract.lorax import INFO
from lorafleet_contract.names import HEADER_SESSION
from lorafleet_gateway import errors
from lorafleet_gateway.front.keys import OPEN_PATHS
from lorafleet_gateway.front.openapi import FILE
from lorafleet_gateway.front.server import MODEL_PATH, MODELS_PATH, PROXIED_PATHS
from lorafleet_inference.server.openapi.answers import ErrorCase, case_of, cases_of
from lorafleet_inference.server.openapi.build import build, document
from lorafleet_inference.server.openapi.operations import OPERATIONS, Form, Operation, Parameter

POD: Final = Path(__file__).resolve().parents[1] / "docs" / "reference" / "openapi.json"
GATEWAY: Final = Path(str(FILE))
DESCRIPTION: Final = """\
One URL for all base models and adapters of a cluster: OpenAI's, LoRAX's and vLLM's API. Pods answer; a gateway looks for
`model`, of LoRAX's requests for `parameters.adapter_id`, and at nothing else of a body. What is not here is answered 404,
another method 405 with `Allow`, both in OpenAI's form.
"""
READ_PATHS: Final = frozenset({*OPEN_PATHS, "/", MODELS_PATH, MODEL_PATH})
"""Answered by the gateway itself, also to HEAD."""
OF_CONNECTIONS: Final = (errors.HeadTimeout, errors.HeadTooLarge, errors.TooManyConnections)
"""Before it is known what is asked for."""
OF_NAMES: Final = (errors.ModelNotFound, errors.AdapterFailed, errors.AdapterLoading, errors.NoReadyPod)
OF_NOTHING: Final = (errors.NotFound, errors.MethodNotAllowed)
SESSION: Final = Parameter(
    HEADER_SESSION,
    "header",
    {"type": "string"},
    "a user or a conversation: while revisions share the adapter's traffic, the same value meets the same one",
)
PROXIED: Final = tuple(
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.RequestError)
    and kind not in (errors.RequestError, *OF_CONNECTIONS, *OF_NOTHING)
)


def texts() -> dict[Path, str]:
    """Return the files as they should be."""
    documents = {POD: document(asks_for_keys=False), GATEWAY: gateway()}
    return {path: json.dumps(document, indent=1) + "\n" for path, document in documents.items()}


def gateway() -> dict[str, object]:
    """Return the document of a gateway."""
    return build(tuple(gateway_operations()), gateway_cases, description=DESCRIPTION)


def gateway_operations() -> Iterator[Operation]:
    for operation in OPERATIONS:
        if operation.method == "get" and operation.path in READ_PATHS:
            fails = operation.fails if operation.path == "/ready" else None
            own = replace(operation, fails=fails, errors=frozenset())
            yield from (own, replace(own, method="head"))
        elif operation.path in {*PROXIED_PATHS, INFO}:
            yield replace(operation, parameters=(*operation.parameters, SESSION)) if operation.leases else operation


def gateway_cases(operation: Operation) -> list[ErrorCase]:
    """Return how requests may end other than well: where pods are asked as theirs, too."""
    cases = [_case("OpenAI", kind) for kind in (errors.RequestError, *OF_CONNECTIONS)]
    if operation.path in READ_PATHS and operation.method != "post":
        kinds = (() if operation.is_open else (errors.Unauthorized,)) + (
            OF_NAMES if operation.path == MODEL_PATH else ()
        )
        return cases + [_case("OpenAI", kind) for kind in kinds]
    return [*cases, *cases_of(operation), *(_case(form, kind) for form in operation.forms for kind in PROXIED)]


def _case(form: Form, kind: type[errors.RequestError]) -> ErrorCase:
    return case_of(form, kind, kind.status, kind.code)
