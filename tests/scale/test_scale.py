"""The harness of `make scale` at a small size: whatever is measured there is measured, and a quiet fleet is left alone."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scale.page import table_of
from scale.pods import Pieces, ScalePod
from scale.results import Json, Results
from scale.world import content_revision, series
from support.fake_pod import Library

from lorafleet_contract.admin import CatalogueEntry, CatalogueWrite, PodDifference, PodState, Residency, RevisionRef
from lorafleet_contract.routes import Routes
from lorafleet_contract.sources import SourceRef

ROOT = Path(__file__).resolve().parents[2]
NUM_PODS, NUM_ADAPTERS, NUM_CHANGES = 3, 12, 3


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("scale") / "scale.json"
    options = (f"--pods={NUM_PODS}", f"--adapters={NUM_ADAPTERS}", f"--changes={NUM_CHANGES}", f"--output={output}")
    command = [sys.executable, "-m", "scale", *options, "--churn-seconds=2", "--steady-seconds=2"]
    path = os.pathsep.join([*(str(ROOT / one / "src") for one in ("contract", "common")), "tests", "tools"])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(output.read_text())["run"]
    return found


@pytest.mark.skipif("LORAFLEET_TEST_SCALE" not in os.environ, reason="half a minute of a core: only with `make scale`")
def test_each_phase_is_measured_and_a_quiet_fleet_is_left_alone(result: dict[str, Any]) -> None:
    assert result["cold"]["status_writes"] >= NUM_ADAPTERS
    assert result["cold"]["catalogue_writes"] >= NUM_PODS
    for phase in ("single_changes", "churn"):
        found = result[phase]
        assert found["at_its_pods_seconds"]["num"] == found["num_changes"] - found["num_overtaken"] > 0, phase
        assert 0 < found["at_its_pods_seconds"]["median"] <= found["at_all_pods_seconds"]["highest"], phase
        assert found["switched_seconds"]["median"] > found["at_its_pods_seconds"]["median"], phase
        assert found["passes"]["num"] > 0, phase
    assert result["single_changes"]["num_changes"] == NUM_CHANGES
    assert result["single_changes"]["gateway_behind_seconds"]["num"] == NUM_CHANGES
    assert result["steady"]["writes"] == {}
    assert result["steady"]["status_writes"] == 0
    assert result["rolling_update_in_mode_all"]["status_writes"] >= NUM_ADAPTERS
    assert 20 < result["memory_mib"]["operator"]["highest"] < 300


def entry(path: str, *, residency: Residency = Residency.RESIDENT, stable: bool = True) -> CatalogueEntry:
    source = Library().resolve(SourceRef(name="models", path=path))
    return CatalogueEntry(name="one", source=source, residency=residency, stable=stable)


def test_documents_made_of_pieces_are_those_of_the_contract() -> None:
    pod = ScalePod("198.51.100.1", "", 8, Pieces(), [])
    pod.take(CatalogueWrite(fence=1, generation=1, adapters=[entry("a")]))
    pod.take(CatalogueWrite(fence=1, generation=2, adapters=[entry("b", residency=Residency.ON_DEMAND)]))
    state, routes = PodState.model_validate_json(pod.state()), Routes.model_validate_json(pod.routes())
    assert [(a.revision, a.stable, a.residency) for a in state.adapters] == [
        (content_revision("a"), False, "Resident"),
        (content_revision("b"), True, "OnDemand"),
    ]
    assert (state.budgets.used_rank_pages, state.fence, state.catalogue_generation, state.ready) == (1, 1, 2, True)
    assert routes.adapters is not None
    assert [(a.revision, a.stable, a.tier) for a in routes.adapters] == [
        (content_revision("a"), False, "Device"),
        (content_revision("b"), True, "Disk"),
    ]
    removed = RevisionRef(name="one", revision=content_revision("a"))
    pod.take(CatalogueWrite(fence=1, generation=3, removed=[removed]))
    assert [a.revision for a in PodState.model_validate_json(pod.state()).adapters] == [content_revision("b")]
    assert [(one[3], one[4]) for one in pod.taken] == [
        (content_revision("a"), "Resident"),
        (content_revision("b"), "OnDemand"),
        (content_revision("a"), "Removed"),
    ]


def test_differences_of_pods_made_of_pieces_come_to_their_documents() -> None:
    draw = random.Random(3)
    pod = ScalePod("198.51.100.1", "", 8, Pieces(), [])
    known = [PodState.model_validate_json(pod.state())]
    for generation in range(1, 60):
        told = [
            entry(path, residency=draw.choice(list(Residency)), stable=draw.random() < 0.5)
            for path in draw.sample("abcd", draw.randint(0, 2))
        ]
        gone = [RevisionRef(name="one", revision=content_revision(path)) for path in draw.sample("abcd", 1)]
        pod.take(CatalogueWrite(fence=1, generation=generation, adapters=told, removed=gone))
        whole, since = PodState.model_validate_json(pod.state()), draw.choice(known)
        difference = PodDifference.model_validate_json(pod.state(since.generation))
        merged = difference.applied_to(since)
        assert {a.revision: a for a in merged.adapters} == {a.revision: a for a in whole.adapters}
        assert merged.model_copy(update={"adapters": []}) == whole.model_copy(update={"adapters": []})
        known.append(whole)
    routes = Routes.model_validate_json(pod.routes(known[-1].generation))
    assert (routes.since, routes.adapters, routes.removed) == (known[-1].generation, [], [])


def test_interrupted_run_loses_no_phase_that_has_ended(tmp_path: Path) -> None:
    output = tmp_path / "scale.json"
    results = Results({"cores": 2}, output)

    def smaller(keep: Callable[[Json], None]) -> Json:
        return {"cold": 1}

    def broken(keep: Callable[[Json], None]) -> Json:
        keep({"cold": 2})
        keep({"cold": 2, "churn": 3})
        raise KeyboardInterrupt

    results.add_smaller(smaller)
    with pytest.raises(KeyboardInterrupt):
        results.add_run(broken)
    found = json.loads(output.read_text())
    assert found == {"environment": {"cores": 2}, "sweep": [{"cold": 1}], "run": {"cold": 2, "churn": 3}}


def test_metrics_are_read_by_name_and_labels() -> None:
    text = '# TYPE a counter\na{b="c",d="e"} 2\na_more 7\nplain 3.5e+02\n'
    assert series(text, "a") == {'b="c",d="e"': 2}
    assert series(text, "plain") == {"": 350}


def test_the_page_has_the_results_that_are_committed() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())
    page = (ROOT / "docs" / "scale.md").read_text()
    assert table_of(results["run"]) in page
    assert table_of(results["sweep"][-1]) in page
