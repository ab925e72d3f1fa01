"""The OpenAPI document of the port. It is made beside the pods' (tools/openapi_documents.py), whose API most of it is."""

import json
from importlib import resources
from typing import Any, Final

FILE: Final = resources.files("lorafleet_gateway.front") / "openapi.json"


def openapi_json(*, asks_for_keys: bool) -> bytes:
    """Return the document; `asks_for_keys`: there is a file of keys."""
    document: dict[str, Any] = json.loads(FILE.read_bytes())
    (scheme,) = document["components"]["securitySchemes"]
    return json.dumps({**document, "security": [{scheme: []}]} if asks_for_keys else document).encode()
