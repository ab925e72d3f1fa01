"""Whoever copies an example gets something that the API server admits and the operator accepts."""

import copy
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fleet import Fleet
from support.openapi import problems, schemas

from lorafleet_contract.names import GROUP, VERSION
from lorafleet_contract.resources import AdapterResource, BaseModelResource
from lorafleet_operator.cluster.collect import base_key_of
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.decide.accept import refusal_of
from lorafleet_operator.decide.pod_template import pod_template
from lorafleet_operator.decide.views import Snapshot

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(EXAMPLES.rglob("*.md"))]
SCHEMAS = schemas()
Json = dict[str, Any]


def documents(text: str) -> list[Json]:
    """Documents of a YAML text that are resources of ours."""
    return [item for item in yaml.safe_load_all(text) if isinstance(item, dict) and item.get("kind") in SCHEMAS]


def of_files() -> dict[str, Json]:
    """All resources in examples/, by file and name."""
    return {
        f"{path.relative_to(EXAMPLES)}:{item['metadata']['name']}": item
        for path in sorted(EXAMPLES.rglob("*.yaml"))
        for item in documents(path.read_text())
    }


def of_pages() -> dict[str, Json]:
    """All resources in YAML blocks of the documentation."""
    return {
        f"{path.relative_to(ROOT)}:{item['metadata']['name']}": item
        for path in PAGES
        for block in re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        for item in documents(block)
    }


FILES = of_files()
ALL = {**FILES, **of_pages()}


def as_stored(item: Json) -> Json:
    """What the API server adds."""
    metadata = {"uid": item["metadata"]["name"], "namespace": "default", **item["metadata"]}
    return {**item, "metadata": metadata}


def adapter_of(item: Json) -> AdapterResource:
    return AdapterResource.model_validate(as_stored(item))


def bases_of(folder: str) -> dict[tuple[str, str], BaseModelResource]:
    """Base models of one example, by namespace and name."""
    found = [
        item
        for where, item in FILES.items()
        if where.startswith(f"{folder}/") and item["kind"] == "BaseModelDeployment"
    ]
    bases = [BaseModelResource.model_validate(as_stored(item)) for item in found]
    return {(base.metadata.namespace, base.metadata.name): base for base in bases}


@pytest.mark.parametrize("where", ALL)
def test_resource_has_the_fields_of_its_definition_and_no_others(where: str) -> None:
    item = ALL[where]
    assert item["apiVersion"] == f"{GROUP}/{VERSION}"
    assert problems(item, SCHEMAS[item["kind"]]) == []
    model = BaseModelResource if item["kind"] == "BaseModelDeployment" else AdapterResource
    assert model.model_validate(as_stored(item)).spec


@pytest.mark.parametrize("where", [where for where, item in FILES.items() if item["kind"] == "LoraAdapter"])
def test_operator_accepts_the_adapter(where: str) -> None:
    adapter = adapter_of(FILES[where])
    key = base_key_of(Kind.ADAPTER, as_stored(FILES[where]))
    assert key is not None
    base = bases_of(where.partition("/")[0]).get(key)
    assert base is not None, f"{key} is not in this example"
    snapshot = Snapshot(
        key=key,
        base=base,
        adapters=(adapter,),
        pods=(),
        claims={},
        broken=(),
        are_orphans_known=False,
        now=datetime.now(UTC),
    )
    assert refusal_of(adapter, snapshot) is None


@pytest.mark.parametrize("folder", sorted({where.partition("/")[0] for where in FILES}))
def test_names_are_unique_and_pods_can_be_made(folder: str) -> None:
    bases = bases_of(folder)
    adapters = [
        adapter_of(item)
        for where, item in FILES.items()
        if where.startswith(f"{folder}/") and item["kind"] == "LoraAdapter"
    ]
    names = [item.served_name for item in (*bases.values(), *adapters)]
    assert len(names) == len(set(names))
    assert adapters
    for base in bases.values():
        template = pod_template(
            base, engine_image="engine", labels={"lorafleet.io/base": base.metadata.name}, token_sha256="0" * 64
        )
        engine = next(c for c in template["spec"]["containers"] if c["name"] == "engine")
        assert ("nvidia.com/gpu" in engine.get("resources", {}).get("limits", {})) == (
            base.spec.engine.device == "Cuda"
        )


def test_examples_cover_all_kinds_of_source() -> None:
    sources = [
        source
        for item in FILES.values()
        if item["kind"] == "BaseModelDeployment"
        for source in item["spec"]["adapterSources"]
    ]
    assert {kind for source in sources for kind in source if kind != "name"} == {"volume", "s3", "huggingFace", "oci"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda spec: spec.update(replica=2), ".spec.replica: is no field"),
        (lambda spec: spec.update(replicas="2"), ".spec.replicas: is no integer"),
        (lambda spec: spec.pop("model"), ".spec.model: is missing"),
        (lambda spec: spec["lora"].update(maxRank=512), ".spec.lora.maxRank: 512 is out of bounds"),
        (lambda spec: spec["engine"].update(device="Gpu"), ".spec.engine.device: 'Gpu' is none of"),
        (lambda spec: spec["adapterSources"][0].update(name="A"), ".spec.adapterSources[0].name: 'A' does not match"),
    ],
)
def test_a_mistake_would_be_seen(change: Any, problem: str) -> None:
    item = copy.deepcopy(FILES["llama/base.yaml:llama"])
    change(item["spec"])
    found = problems(item, SCHEMAS["BaseModelDeployment"])
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.cluster
def test_api_server_admits_all_of_them(fleet: Fleet) -> None:
    """With the CEL rules, which only a real one judges."""
    for item in ALL.values():
        moved = {**item, "metadata": {**item["metadata"], "namespace": "default"}}  # where none of them is yet
        fleet.kube.kubectl(
            "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(moved)
        )
