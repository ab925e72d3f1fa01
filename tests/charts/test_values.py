"""Every value is described, judged and used."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import chart_files
import pytest
from support.charts import CHART, Helm, Json, merged, nested

SCHEMA: Json = json.loads((CHART / "values.schema.json").read_text())
VALUES = {value.name: value for value in chart_files.values()}

ALL_ON: Json = {
    "operator": {"replicas": 2},
    "gateway": {"autoscaling": {"enabled": True}},
    "networkPolicy": {"enabled": True, "engineNamespaces": ["numerals"], "engineEgress": {"enabled": True}},
    "monitoring": {"podMonitors": {"enabled": True}, "rules": {"enabled": True}, "dashboard": {"enabled": True}},
}
NEEDED: dict[str, Json] = {
    "gateway.replicas": nested("gateway.autoscaling.enabled", False),
    "rbac.kindsEverywhere": {"watchNamespaces": ["numerals"]},
    "operator.serviceAccount.create": nested("operator.serviceAccount.name", "own"),
    "gateway.serviceAccount.create": nested("gateway.serviceAccount.name", "own"),
}
"""What must be set beside a value for it to count."""

OTHERS: dict[str, Any] = {
    "image.digest": "sha256:" + "1" * 64,
    "image.pullPolicy": "Never",
    "logLevel": "debug",
    "removal.remaining": "Warn",
    "logFormat": "text",
    "service.type": "LoadBalancer",
    "podMonitors.interval": "7s",
    "rules.disabled": ["LorafleetPreempting"],
    "apiServerPorts": [7443],
}
"""Another value than the default, by the end of the name, where any text or the next number would not do."""

SHAPES: dict[str, Any] = {
    "imagePullSecrets": [{"name": "TRACE"}],
    "watchNamespaces": ["TRACE"],
    "engineNamespaces": ["TRACE"],
    "extraArgs": ["--TRACE"],
    "extraEnv": [{"name": "TRACE", "value": "1"}],
    "extraVolumes": [{"name": "TRACE", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "TRACE", "mountPath": "/more"}],
    "resources": {"limits": {"example.com/TRACE": 1}},
    "podSecurityContext": {"runAsUserName": "TRACE"},
    "securityContext": {"procMount": "TRACE"},
    "tolerations": [{"key": "TRACE", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"TRACE": []}},
    "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "TRACE", "whenUnsatisfiable": "DoNotSchedule"}],
    "rules.runbookURL": "https://example.com/TRACE",
    "tracing.endpoint": "https://example.com/TRACE",
    "prometheus.url": "https://example.com/TRACE",
    "gatewayFrom": [{"podSelector": {"matchLabels": {"TRACE": "a"}}}],
    "engineFrom": [{"podSelector": {"matchLabels": {"TRACE": "a"}}}],
    "metricsFrom": [{"podSelector": {"matchLabels": {"TRACE": "a"}}}],
    "engineEgress.rules": [{"to": [{"podSelector": {"matchLabels": {"TRACE": "a"}}}]}],
    "servedNames": [{"namespaces": ["TRACE"], "prefixes": ["a"]}],
}
"""Values in which a text of our own can be found again, by the end of the name; TRACE stands for the text."""


def _by_end(table: dict[str, Any], name: str) -> Any:
    return next((value for end, value in table.items() if f".{name}".endswith(f".{end}")), None)


def _is_traced(name: str) -> bool:
    default = VALUES[name].default
    return _by_end(OTHERS, name) is None and not isinstance(default, bool | int)


def trace(name: str) -> str:
    """A text that is legal in all places and belongs to one value."""
    return f"v-{name.replace('.', '-').lower()}-v"


def traced(name: str) -> Any:
    """A value with its trace in it."""
    shape = _by_end(SHAPES, name)
    if shape is None:
        shape = {"example.com/more": "TRACE"} if isinstance(VALUES[name].default, dict) else "TRACE"
    return json.loads(json.dumps(shape).replace("TRACE", trace(name)))


@pytest.fixture(scope="module")
def all_traced(helm: Helm) -> str:
    """Rendered with every value that can hold a text."""
    return helm.text(merged(ALL_ON, *(nested(name, traced(name)) for name in VALUES if _is_traced(name))))


@pytest.fixture(scope="module")
def text_of(helm: Helm) -> Callable[[Json], str]:
    """Render once what is asked for more than once."""
    rendered = cache(lambda values: helm.text(json.loads(values)))
    return lambda values: rendered(json.dumps(values))


@pytest.mark.parametrize("name", [name for name in VALUES if _is_traced(name)])
def test_value_is_used(all_traced: str, name: str) -> None:
    assert trace(name) in all_traced


@pytest.mark.parametrize("name", [name for name in VALUES if not _is_traced(name)])
def test_value_makes_a_difference(text_of: Callable[[Json], str], name: str) -> None:
    before = merged(ALL_ON, NEEDED.get(name, {}))
    now = _lookup(before, name)
    now = VALUES[name].default if now is None else now
    other = _by_end(OTHERS, name) or (not now if isinstance(now, bool) else now + 1)
    assert text_of(merged(before, nested(name, other))) != text_of(before)


def _lookup(values: Any, name: str) -> Any:
    for key in name.split("."):
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


@pytest.mark.parametrize("name", VALUES)
def test_value_is_in_the_schema_and_described(name: str) -> None:
    assert VALUES[name].description.endswith("."), name
    schema = SCHEMA
    for key in name.split("."):
        schema = _resolved(schema)["properties"][key]


def test_schema_has_nothing_that_is_no_value() -> None:
    assert sorted(_leaves(SCHEMA, "")) == sorted([*VALUES, "global"])


def _leaves(schema: Json, name: str) -> list[str]:
    """Names of the schema, down to where values.yaml describes a whole."""
    properties = _resolved(schema).get("properties", {})
    if not properties or name in VALUES:
        return [name]
    return [leaf for key, part in properties.items() for leaf in _leaves(part, f"{name}.{key}".lstrip("."))]


def _resolved(schema: Json) -> Json:
    if reference := schema.get("$ref"):
        resolved: Json = SCHEMA["definitions"][reference.rpartition("/")[2]]
        return resolved
    return schema


def test_schema_names_all_keys_of_every_map() -> None:
    """A map either lists its keys and takes no other, or says of what kind all of them are."""

    def check(schema: Any, where: str) -> None:
        if isinstance(schema, list):
            for number, part in enumerate(schema):
                check(part, f"{where}[{number}]")
        if not isinstance(schema, dict):
            return
        if "properties" in schema:
            assert schema.get("additionalProperties") is False, where
        elif schema.get("type") == "object":
            assert "additionalProperties" in schema or "$comment" in schema, where
        for key, part in schema.items():
            check(part, f"{where}.{key}")

    check(SCHEMA, "")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"oprator": {}}, "oprator"),
        (nested("operator.bogus", 1), "bogus"),
        (nested("gateway.image.bogus", 1), "bogus"),
        (nested("gateway.service.bogus", 1), "bogus"),
        (nested("monitoring.rules.bogus", 1), "bogus"),
        (nested("operator.image.digest", "sha256:12"), "/operator/image/digest"),
        (nested("operator.image.tag", "a:b"), "/operator/image/tag"),
        (nested("operator.image.repository", "image@sha256:1"), "/operator/image/repository"),
        (nested("operator.image.pullPolicy", "always"), "/operator/image/pullPolicy"),
        (nested("operator.resyncSeconds", 0), "/operator/resyncSeconds"),
        (nested("operator.workers", 65), "/operator/workers"),
        (nested("operator.logLevel", "trace"), "/operator/logLevel"),
        (nested("operator.extraEnv", [{"name": "A", "valeu": "b"}]), "valeu"),
        (nested("gateway.replicas", "2"), "/gateway/replicas"),
        (nested("gateway.service.port", 0), "/gateway/service/port"),
        (nested("gateway.nodeSelector", {"a": 1}), "/gateway/nodeSelector/a"),
        (nested("watchNamespaces", ["Team"]), "/watchNamespaces/0"),
        (nested("networkPolicy.gatewayFrom", [{"podselector": {}}]), "podselector"),
        (nested("networkPolicy.enabled", True), "networkPolicy.engineNamespaces"),
        (nested("networkPolicy.engineEgress.rules", [{"form": []}]), "form"),
        (nested("admission.servedNames", [{"namespaces": ["a"]}]), "prefixes"),
        (nested("admission.servedNames", [{"namespaces": ["a"], "prefixes": ["it's"]}]), "prefixes/0"),
        (nested("operator.serviceAccount.create", False), "operator.serviceAccount.name is needed"),
        (
            merged(nested("monitoring.rules.enabled", True), nested("monitoring.rules.disabled", ["Nothing"])),
            "Nothing is none of",
        ),
    ],
)
def test_bad_value_is_refused_by_name(helm: Helm, values: Json, named: str) -> None:
    assert named in helm.refusal(values)


def test_reference_page_is_up_to_date() -> None:
    assert chart_files.PAGE.read_text() == chart_files.page(), "run: make charts"


def test_chart_is_well(helm: Helm) -> None:
    helm.lint(CHART)
    helm.lint(CHART, ALL_ON)
