"""The whole document."""

from collections.abc import Sequence
from functools import cache
from importlib import metadata
from typing import Any, Final

from pydantic import BaseModel

from lorafleet_inference.server.openapi.answers import BODIES, JSON, Answers, Cases, cases_of
from lorafleet_inference.server.openapi.operations import OPERATIONS, Operation, Parameter
from lorafleet_inference.server.openapi.schemas import Components

Schema = dict[str, Any]
DESCRIPTION: Final = """\
OpenAI's, LoRAX's and vLLM's API of one base model and its adapters; `model` names one of them. Fields that would change an
answer and are not honoured are refused by name, and so are unknown ones, which `--unknown-fields ignore` passes over.
What is not here is answered 404, another method 405 with `Allow`, both in OpenAI's form.
"""
KEY: Final = "key"


def document(*, asks_for_keys: bool) -> Schema:
    """Return the document of a pod; `asks_for_keys`: it has a file of keys."""
    made = _of_pods()
    return {**made, "security": [{KEY: []}]} if asks_for_keys else made


@cache
def _of_pods() -> Schema:
    return build(OPERATIONS, cases_of, description=DESCRIPTION)


def build(operations: Sequence[Operation], cases: Cases, *, description: str) -> Schema:
    """Return the document of some operations that may end as `cases` says."""
    schemas = _schemas(operations)
    answers = Answers(schemas)
    paths: Schema = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method] = _operation(one, schemas, answers.of(one, cases(one)))
    key = {"type": "http", "scheme": "bearer", "description": "Asked for where the server has a file of keys."}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lorafleet",
            "version": metadata.version("lorafleet-inference"),
            "description": description,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": schemas.schemas, **answers.shared(), "securitySchemes": {KEY: key}},
    }


def _schemas(operations: Sequence[Operation]) -> Components:
    requests = dict.fromkeys(kind for operation in operations for kind in operation.takes)
    written = [kind for operation in operations for kind in (*operation.answers, *(operation.fails or ()))]
    written += [operation.stream.event for operation in operations if operation.stream is not None]
    written = list(dict.fromkeys([*BODIES.values(), *written]))
    models = [kind for kind in written if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return Components(requests, models, [kind for kind in written if kind not in models])


def _operation(operation: Operation, schemas: Components, answers: Schema) -> Schema:
    made: Schema = {"operationId": operation.id, "summary": operation.summary, "tags": [operation.tag]}
    if operation.parameters:
        made["parameters"] = [_parameter(one) for one in operation.parameters]
    if operation.takes:
        forms = [schemas.of(kind) for kind in operation.takes]
        schema = forms[0] if len(forms) == 1 else {"anyOf": forms}
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if operation.is_open:
        made["security"] = []
    return {**made, "responses": answers}


def _parameter(parameter: Parameter) -> Schema:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.meaning,
        "schema": parameter.schema,
    }
