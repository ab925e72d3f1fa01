"""What schemathesis has to know of our API beyond its document: names that are served and sizes of a moment."""

import json
import os
import random
from typing import Any, Final

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response

NAMES: Final = os.environ.get("LORAFLEET_TEST_NAMES", "").split(",")
"""Served names, which nobody would guess."""
MAX_FIELDS: Final = 4
"""Optional fields that are kept of a body: of fifty at random some two never go together."""
KEPT: Final = frozenset({"model", "messages", "prompt", "input", "inputs", "tokens", "parameters", "stream"})
LIMITS: Final = {
    **dict.fromkeys(("n", "best_of"), 2),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"), 6),
}


@schemathesis.hook
def before_call(_: HookContext, case: Case, __: dict[str, Any]) -> None:
    """Make a request one that ends within moments, and often well."""
    if case.query:
        case.query.pop("wait_seconds", None)
    if isinstance(case.body, dict):
        draw = random.Random(json.dumps(case.body, sort_keys=True, default=repr))
        case.body = asked(case.body, draw)
        if case.headers and draw.random() < 0.9:
            case.headers.pop("x-lorafleet-revision", None)


def asked(body: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Return a body with a name that is served, small numbers, and sometimes fewer fields."""
    body = dict(body)
    if draw.random() < 0.8:
        optional = [name for name in body if name not in KEPT]
        for name in draw.sample(optional, max(0, len(optional) - draw.randint(0, MAX_FIELDS))):
            del body[name]
    for name, most in LIMITS.items():
        if isinstance(body.get(name), int):
            body[name] = min(body[name], most)
    if isinstance(body.get("model"), str) and draw.random() < 0.9:
        body["model"] = draw.choice(NAMES)
    if isinstance(body.get("adapter_id"), str) and draw.random() < 0.8:
        body["adapter_id"] = draw.choice(NAMES)
    if isinstance(body.get("parameters"), dict) and "inputs" in body:
        body["parameters"] = {"max_new_tokens": 4, **asked(body["parameters"], draw)}
    elif {"messages", "prompt"} & set(body) and draw.random() < 0.9:
        body.setdefault("max_tokens", 4)
    if isinstance(body.get("messages"), list) and draw.random() < 0.6:
        body["messages"] = [plain(one) for one in body["messages"] if isinstance(one, dict)] or body["messages"]
    return body


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message that goes with any other."""
    role, content = message.get("role"), message.get("content")
    return {
        "role": role if role in ("system", "assistant") else "user",
        "content": content if isinstance(content, str) else "x",
    }


@schemathesis.check
def headers_are_described(_: CheckContext, response: Response, case: Case) -> None:
    """Headers of ours are in the document."""
    described = case.operation.schema.raw_schema
    operation = described["paths"][case.path].get(case.method.lower())
    if operation is None:  # a method that the path does not take
        return
    told = operation["responses"].get(str(response.status_code), {})
    if "$ref" in told:
        told = described["components"]["responses"][told["$ref"].rpartition("/")[2]]
    unknown = {name.lower() for name in response.headers if name.lower().startswith("x-")} - set(
        told.get("headers", ())
    )
    assert not unknown, f"headers that the document does not have: {sorted(unknown)}"
