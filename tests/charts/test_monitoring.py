"""Dashboard and alerts speak of metrics that exist, and each alert of what to do."""

import json
import re
from typing import Any

import pytest
import yaml
from support.charts import CHART, Helm, Json, nested

from lorafleet_gateway import metrics as gateway_metrics
from lorafleet_inference import metrics as engine_metrics
from lorafleet_operator import metrics as operator_metrics

RULES: Json = yaml.safe_load((CHART / "rules" / "lorafleet.yaml").read_text())
ALERTS: list[Json] = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD: Json = json.loads((CHART / "dashboards" / "lorafleet.json").read_text())
RUNBOOK = (CHART.parents[1] / "docs" / "alerts.md").read_text()
FROM_SCRAPE = {"namespace", "pod", "job", "instance", "le"}
"""Labels that Prometheus adds, or that buckets have."""


def metrics() -> dict[str, set[str]]:
    """Series that the programs publish, with their own labels."""
    found: dict[str, set[str]] = {}

    def add(name: str, kind: str, labels: set[str]) -> None:
        endings = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found.update({f"{name}{ending}": labels for ending in endings})

    for line in engine_metrics.TABLE:
        own = engine_metrics.VLLM_LABEL if line.name.startswith("vllm:") else "base"
        add(line.name, line.kind, {own, *line.labels})
    for line in gateway_metrics.TABLE:
        add(line.name, line.kind, set(line.labels))
    for line in operator_metrics.TABLE:
        add(line.name, line.kind, set(line.labels))
    return found


KNOWN = metrics()


def targets() -> list[tuple[str, str]]:
    """Title and expression of everything that the dashboard asks."""
    panels = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return panels + [
        ("variable", variable["definition"])
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
    ]


EXPRESSIONS = [*targets(), *((rule["alert"], rule["expr"]) for rule in ALERTS)]


def test_all_three_programs_are_known() -> None:
    for name in (
        "lorafleet_operator_leader",
        "lorafleet_operator_reconciles_total",
        "lorafleet_gateway_ready",
        "lorafleet_ready",
        "vllm:kv_cache_usage_perc",
    ):
        assert name in KNOWN


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_expression_names_metrics_and_labels_that_exist(where: str, expression: str) -> None:
    names = re.findall(r"\b(?:lorafleet_[a-z0-9_]+|vllm:[a-z0-9_]+)", expression)
    assert names
    assert not [name for name in names if name not in KNOWN]
    own = set().union(*(KNOWN[name] for name in names))
    for name, selector in re.findall(r"(lorafleet_[a-z0-9_]+)\{([^}]*)\}", expression):
        used = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector))
        assert used <= KNOWN[name] | FROM_SCRAPE, f"{name} has no label {used - KNOWN[name]}"
    for grouping in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in grouping.split(",")} <= own | FROM_SCRAPE
    if "bucket" in expression:
        assert re.search(r"by \([^)]*\ble\b", expression)
    for name in names:
        if name.endswith("_total"):
            assert re.search(rf"(?:rate|increase)\({name}", expression), f"{name} is a counter"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alert_says_what_is_the_matter(rule: Json) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert set(rule["annotations"]) == {"summary", "description"}
    names = re.findall(r"lorafleet_[a-z0-9_]+", rule["expr"])
    kept = re.search(r"\bby \(([^)]*)\)", rule["expr"])
    own = set().union(*(KNOWN[name] for name in names)) | FROM_SCRAPE
    labels = {label.strip() for label in kept[1].split(",")} if kept else own
    for text in rule["annotations"].values():
        assert set(re.findall(r"\$labels\.([a-z_]+)", text)) <= labels, "the alert does not keep that label"


def test_each_alert_has_a_runbook_and_no_runbook_is_left_over() -> None:
    assert re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in ALERTS]


def test_runbooks_speak_of_panels_that_exist() -> None:
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    named = set(re.findall(r"\*([A-Z][^*]+)\*", RUNBOOK))
    assert named
    assert named <= titles


def test_rule_object_has_the_alerts_that_are_wanted(helm: Helm) -> None:
    values = nested(
        "monitoring.rules",
        {
            "enabled": True,
            "disabled": ["LorafleetOverloaded"],
            "runbookURL": "https://example.com/alerts",
            "labels": {"release": "p"},
        },
    )
    rendered = helm.render(values).one("PrometheusRule", "lorafleet")
    assert rendered["metadata"]["labels"]["release"] == "p"
    rules = {rule["alert"]: rule for group in rendered["spec"]["groups"] for rule in group["rules"]}
    assert set(rules) == {rule["alert"] for rule in ALERTS} - {"LorafleetOverloaded"}
    for rule in ALERTS:
        if rule["alert"] in rules:
            rendered_rule: dict[str, Any] = rules[rule["alert"]]
            assert (
                rendered_rule["annotations"].pop("runbook_url") == f"https://example.com/alerts#{rule['alert'].lower()}"
            )
            assert rendered_rule == rule


def test_everything_is_scraped(helm: Helm) -> None:
    rendered = helm.render(nested("monitoring.podMonitors.enabled", True))
    for component in ("operator", "gateway"):
        spec = rendered.one("PodMonitor", f"lorafleet-{component}")["spec"]
        labels = rendered.one("Deployment", f"lorafleet-{component}")["spec"]["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert spec["podMetricsEndpoints"][0]["port"] == rendered.container(component)["ports"][-1]["name"]
    engines = rendered.one("PodMonitor", "lorafleet-engines")["spec"]
    assert engines["namespaceSelector"] == {"any": True}
    assert engines["selector"] == {"matchExpressions": [{"key": "lorafleet.io/base", "operator": "Exists"}]}
    watched = helm.render({"watchNamespaces": ["a"], **nested("monitoring.podMonitors.enabled", True)})
    assert watched.one("PodMonitor", "lorafleet-engines")["spec"]["namespaceSelector"] == {"matchNames": ["a"]}


def test_dashboard_is_delivered_whole(helm: Helm) -> None:
    delivered = helm.render(nested("monitoring.dashboard.enabled", True)).one("ConfigMap", "lorafleet-dashboard")
    assert delivered["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(delivered["data"]["lorafleet.json"]) == DASHBOARD


def test_dashboard_is_laid_out() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    titles = [panel["title"] for panel in panels if panel["type"] != "row"]
    cells = {
        (p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy)
        for p in panels
        for dx in range(p["gridPos"]["w"])
        for dy in range(p["gridPos"]["h"])
    }
    assert len(cells) == sum(p["gridPos"]["w"] * p["gridPos"]["h"] for p in panels), "panels overlap"
    assert len(titles) > 30
