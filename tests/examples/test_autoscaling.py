"""The autoscalers of the example ask for metrics that exist, and scale a base model that the example has."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fleet import NAMESPACE, Fleet

from lorafleet_contract.base_spec import BaseModelSpec
from lorafleet_contract.names import BASE_MODEL_KIND, GROUP, VERSION
from lorafleet_inference import metrics

LLAMA = Path(__file__).resolve().parents[2] / "examples" / "llama"
FOLDER = LLAMA / "autoscaling"
Json = dict[str, Any]


def read(name: str) -> Json:
    document: Json = yaml.safe_load((FOLDER / name).read_text())
    return document


HPA, KEDA = read("hpa.yaml"), read("keda.yaml")
(RULE,) = read("prometheus-adapter-values.yaml")["rules"]["custom"]
(TRIGGER,) = KEDA["spec"]["triggers"]
BASE: Json = yaml.safe_load((LLAMA / "base.yaml").read_text())


@pytest.mark.parametrize("item", [HPA, KEDA], ids=["HorizontalPodAutoscaler", "ScaledObject"])
def test_it_scales_the_base_model_of_the_example(item: Json) -> None:
    wanted = {"apiVersion": f"{GROUP}/{VERSION}", "kind": BASE_MODEL_KIND, "name": BASE["metadata"]["name"]}
    assert item["spec"]["scaleTargetRef"] == wanted
    assert item["metadata"]["namespace"] == BASE["metadata"]["namespace"]


def test_both_aim_at_the_same_and_take_the_same_time() -> None:
    (metric,) = HPA["spec"]["metrics"]
    assert metric["pods"]["target"] == {"type": TRIGGER["metricType"], "averageValue": TRIGGER["metadata"]["threshold"]}
    ends = [(spec["minReplicas"], spec["maxReplicas"]) for spec in (HPA["spec"],)]
    assert ends == [(KEDA["spec"]["minReplicaCount"], KEDA["spec"]["maxReplicaCount"])]
    assert ends[0][0] == BASE["spec"]["replicas"] <= KEDA["spec"]["fallback"]["replicas"] <= ends[0][1]
    assert HPA["spec"]["behavior"] == KEDA["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]


def test_what_prometheus_is_asked_for_is_published_by_pods() -> None:
    known = {line.name: {"base", *line.labels} for line in metrics.TABLE}
    query = TRIGGER["metadata"]["query"]
    for text in (query, RULE["metricsQuery"], RULE["seriesQuery"]):
        names = re.findall(r"lorafleet_[a-z_]+", text)
        assert names
        assert set(names) <= {metrics.RUNNING, metrics.WAITING} & known.keys(), text
    assert re.findall(r'\{(\w+)="([^"]+)"\}', query) == [("base", BASE["metadata"]["name"])] * 2
    assert RULE["metricsQuery"].count("<<.LabelMatchers>>") == 2
    assert RULE["name"]["as"] == HPA["spec"]["metrics"][0]["pods"]["metric"]["name"]


def test_the_operator_is_given_the_same() -> None:
    """By the same numbers, whoever counts the pods."""
    given = read("operator.yaml")["spec"]
    merged = BASE["spec"] | {key: value for key, value in given.items() if value is not None}
    spec = BaseModelSpec.model_validate({key: value for key, value in merged.items() if given.get(key, "") is not None})
    assert spec.autoscaling is not None
    hpa = HPA["spec"]
    assert (spec.autoscaling.min_replicas, spec.autoscaling.max_replicas) == (hpa["minReplicas"], hpa["maxReplicas"])
    assert str(spec.autoscaling.target_sequences) == hpa["metrics"][0]["pods"]["target"]["averageValue"]
    window = hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"]
    assert spec.autoscaling.scale_down_after_seconds == window
    assert spec.replicas == BaseModelSpec.model_fields["replicas"].default


@pytest.mark.cluster
def test_the_api_server_takes_the_horizontal_pod_autoscaler(fleet: Fleet) -> None:
    item = {**HPA, "metadata": {**HPA["metadata"], "namespace": NAMESPACE}}
    ask = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-o", "name", "-f", "-")
    assert fleet.kube.kubectl(*ask, stdin=yaml.safe_dump(item)).startswith("horizontalpodautoscaler.autoscaling/")
