"""Writes the generated tables of the reference pages: `python tools/reference_docs.py`; a test keeps them true."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crd_docs
import openapi_documents
import surface_docs

from lorafleet_contract import reason_table
from lorafleet_contract.reasons import RETRYABLE, Reason
from lorafleet_gateway import config as gateway_config
from lorafleet_gateway import metrics as gateway_metrics
from lorafleet_inference import metrics, options
from lorafleet_inference.server import fields, lorax_requests
from lorafleet_inference.server.lorax_requests import LoraxParameters
from lorafleet_inference.server.public import SURFACES
from lorafleet_operator import config as operator_config
from lorafleet_operator import metrics as operator_metrics
from lorafleet_operator.decide import accept, adapter_ready, base_ready
from lorafleet_operator.decide.checks import Chain

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"


def metrics_table() -> str:
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for line in metrics.TABLE:
        own = metrics.VLLM_LABEL if line.name.startswith("vllm:") else "base"
        labels = ", ".join(f"`{label}`" for label in (own, *line.labels))
        lines.append(f"| `{line.name}` | {line.kind} | {labels} | {line.meaning} |")
    return "\n".join(lines) + "\n"


def surfaces_table() -> str:
    return _table(*surface_docs.table())


def passed_table() -> str:
    lines = ["| field | why it changes nothing |", "|---|---|"]
    lines += [f"| `{name}` | it {reason} |" for name, reason in sorted(fields.PASSED.items())]
    return "\n".join(lines) + "\n"


def refused_table() -> str:
    rows = []
    for name, field in sorted(fields.NEUTRAL.items()):
        values = dict.fromkeys(
            str(value).replace("'", '"').replace("True", "true").replace("False", "false") for value in field.values
        )
        legal = ", ".join(f"`{value}`" for value in values) or "absent"
        by = ", ".join(f"`{surface.path}`" for surface in SURFACES if name in surface.fields())
        rows.append([f"`{name}`", legal, field.meaning, by])
    return _table(["field", "accepted only as", "it would", "honoured all the same by"], rows)


def lorax_table() -> str:
    properties = LoraxParameters.model_json_schema()["properties"]
    rows = [[f"`{name}`", _legal(schema), _default(schema)] for name, schema in properties.items()]
    return _table(["field of `parameters`", "values", "default"], rows)


def _legal(schema: dict[str, Any]) -> str:
    schema = next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
    if "$ref" in schema:
        return "object"
    bounds = {"minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}", "exclusiveMaximum": "< {}"}
    found = [text.format(schema[key]) for key, text in bounds.items() if key in schema]
    if schema["type"] == "array":
        found.append(f"up to {schema['maxItems']}, each of 1 to {schema['items']['maxLength']} characters")
    return ", ".join([{"array": "list of strings"}.get(schema["type"], schema["type"]), *found])


def _default(schema: dict[str, Any]) -> str:
    return "" if schema.get("default") in (None, "") else f"`{json.dumps(schema['default'])}`"


def lorax_refused_table() -> str:
    rows = []
    for name, field in sorted(lorax_requests.REFUSED.items()):
        legal = ", ".join(f"`{json.dumps(value)}`" for value in field.values) or "absent"
        rows.append([f"`{name}`", legal, field.meaning])
    return _table(["field of `parameters`", "accepted only as", "it would"], rows)


def reasons_table(about: dict[Reason, reason_table.About]) -> str:
    """A table of reasons; columns that no row fills are left out."""
    has_remedy = any(text.remedy for text in about.values())
    columns = ["reason", "retryable", "what it is", "what to do"] if has_remedy else ["reason", "what it is"]
    rows = []
    for reason, text in about.items():
        retryable = "yes" if reason in RETRYABLE else ""
        rows.append([f"`{reason}`", *([retryable] if has_remedy else []), text.meaning, *([text.remedy] * has_remedy)])
    return _table(columns, rows)


def checks_table(chain: Chain[Any, Any]) -> str:
    rows = [
        [check.expects, ", ".join(f"`{reason}`" for reason in check.reasons) or "that of what it names", check.hint]
        for check in chain
    ]
    return _table(["what has to be so", "reason", "what to do"], rows)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("|" + "|".join(f" {cell} " if cell != "---" else cell for cell in line) + "|\n" for line in lines)


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "crds.md": {
        "bmd-spec": lambda: crd_docs.table("basemodeldeployments", "spec"),
        "bmd-rules": lambda: crd_docs.rules("basemodeldeployments"),
        "bmd-status": lambda: crd_docs.table("basemodeldeployments", "status"),
        "lora-spec": lambda: crd_docs.table("loraadapters", "spec"),
        "lora-rules": lambda: crd_docs.rules("loraadapters"),
        "lora-status": lambda: crd_docs.table("loraadapters", "status"),
    },
    "reasons.md": {
        "reasons-refused": lambda: reasons_table(reason_table.REFUSED),
        "reasons-standing": lambda: reasons_table(reason_table.STANDING),
        "checks-accepted": lambda: checks_table(accept.ACCEPTANCE),
        "checks-adapter-ready": lambda: checks_table(adapter_ready.READINESS),
        "reasons-base": lambda: reasons_table(reason_table.BASE),
        "checks-base-ready": lambda: checks_table(base_ready.READINESS),
        "reasons-autoscaling": lambda: reasons_table(reason_table.AUTOSCALING),
        "reasons-admin": lambda: reasons_table(reason_table.ADMIN),
    },
    "operator.md": {"metrics": operator_metrics.describe},
    "metrics.md": {"metrics": metrics_table},
    "cli.md": {"options": options.describe, "ranks": options.describe_ranks},
    "gateway-metrics.md": {"gateway-metrics": gateway_metrics.describe},
    "../../gateway/README.md": {"options": gateway_config.describe},
    "../../operator/README.md": {"options": operator_config.describe},
    "api.md": {"surfaces": surfaces_table, "passed": passed_table, "refused": refused_table},
    "lorax.md": {"parameters": lorax_table, "refused": lorax_refused_table},
}


def rendered(page: str) -> str:
    """Return a page with its tables as they should be."""
    text = (REFERENCE / page).read_text()
    for name, table in TABLES[page].items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        head, rest = text.split(begin, 1)
        _, tail = rest.split(end, 1)
        text = head + begin + "\n" + table() + "\n" + end + tail
    return text


def main() -> None:
    for page in TABLES:
        (REFERENCE / page).write_text(rendered(page))
    for path, text in openapi_documents.texts().items():
        path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
