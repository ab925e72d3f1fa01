"""`kubectl lorafleet` against an API server over HTTP: what it prints, by which rights, and how it ends."""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fake_kube import FakeKube, Refused

from lorafleet_operator.kubectl import cli, paint
from lorafleet_operator.kubectl.connect import connect
from lorafleet_operator.kubectl.errors import NoCluster

Json = dict[str, Any]
API = "lorafleet.io/v1alpha1"
ROOT = Path(__file__).resolve().parents[2]
SOURCES = [{"name": "models", "volume": {"claimName": "models"}}]


def condition(kind: str, status: str, reason: str, message: str) -> Json:
    moment = "2026-11-24T12:00:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": moment}


def base(name: str = "numerals", namespace: str = "team", **status: Any) -> Json:
    conditions = [condition("Ready", "True", "PodsReady", "2 of 2 pods are ready")]
    counts = {"readyReplicas": 2, "adapters": {"desired": 3, "ready": 2}}
    full = {"observedGeneration": 1, "operator": "system/lorafleet-operator", "conditions": conditions, **counts}
    spec = {"model": {"volume": {"claimName": "models", "path": name}}, "adapterSources": SOURCES, "replicas": 2}
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}"}
    return {
        "apiVersion": API,
        "kind": "BaseModelDeployment",
        "metadata": metadata,
        "spec": spec,
        "status": full | status,
    }


def placement(pod: str, revision: str, state: str = "Ready", **more: Any) -> Json:
    return {"pod": pod, "podUid": f"uid-{pod}", "revision": revision, "state": state, "tier": "Device", **more}


def adapter(
    name: str,
    ready: tuple[str, str, str] = ("True", "Serving", "it answers"),
    *,
    spec: Json | None = None,
    **status: Any,
) -> Json:
    full = {
        "observedGeneration": 1,
        "desiredRevision": "abcdefabcdef",
        "stableRevision": "abcdefabcdef",
        "conditions": [condition("Ready", *ready), condition("Accepted", "True", "Accepted", "")],
        **status,
    }
    wanted = {"baseModelRef": {"name": "numerals"}, "source": {"name": "models", "path": name}, **(spec or {})}
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}"}
    return {"apiVersion": API, "kind": "LoraAdapter", "metadata": metadata, "spec": wanted, "status": full}


def pod(name: str, *, is_ready: bool = True) -> Json:
    owners = [{"controller": True, "kind": "ReplicaSet", "name": "numerals-1"}]
    labels = {"lorafleet.io/base": "numerals", "pod-template-hash": "1"}
    status: Json = {"conditions": [{"type": "Ready", "status": str(is_ready)}]}
    if not is_ready:
        message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
        unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        status["conditions"].append(unscheduled)
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "labels": labels, "ownerReferences": owners}
    return {"metadata": metadata, "status": status}


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    """A base on two pods with three adapters: one that serves, one that a pod refuses, one loaded on demand."""
    kube = FakeKube()
    await kube.start()
    kube.put("basemodeldeployments", base())
    kube.put(
        "loraadapters",
        adapter("french", placements=[placement("a", "abcdefabcdef")], replicas={"desired": 1, "resident": 1}),
    )
    too_high = ("False", "RankTooHigh", "a: rank 128 is above 64")
    failed = placement("a", "111111111111", "Failed", reason="RankTooHigh", message="rank \x1b[31m128 is above 64")
    kube.put("loraadapters", adapter("roman", too_high, desiredRevision="111111111111", placements=[failed]))
    kube.put("loraadapters", adapter("swahili", spec={"placement": {"mode": "OnDemand"}}))
    kube.put("pods", pod("a"))
    kube.put("pods", pod("b", is_ready=False))
    renewed = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    lease = {"name": "lorafleet-operator", "namespace": "system"}
    kube.put("leases", {"metadata": lease, "spec": {"renewTime": renewed}})
    yield kube
    await kube.stop()


@pytest.fixture
def config(kube: FakeKube, tmp_path: Path) -> Path:
    """A kubeconfig whose current context means namespace `team`."""
    contexts = {"here": "team", "elsewhere": None}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "fake", "cluster": {"server": kube.url}}],
        "users": [{"name": "somebody", "user": {"token": "t"}}],
        "contexts": [
            {
                "name": name,
                "context": {"cluster": "fake", "user": "somebody", **({"namespace": place} if place else {})},
            }
            for name, place in contexts.items()
        ],
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(document))
    return path


class Ran:
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(config: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    async def run(*words: str, kubeconfig: Path | None = None) -> Ran:
        status = await asyncio.to_thread(cli.main, [*words, "--kubeconfig", str(kubeconfig or config)])
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    return run


async def test_status_has_bases_and_adapters_of_the_contexts_namespace(run: Any, kube: FakeKube) -> None:
    kube.put("basemodeldeployments", base("other", "elsewhere"))
    ran = await run("status")
    assert ran.status == 0
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["team", "numerals", "True", "2/2", "2/3", "0/0", "PodsReady"] in rows
    assert ["team", "french", "numerals", "True", "abcdefabcdef", "1/1", "-", "Serving"] in rows
    roman = next(line for line in ran.out.splitlines() if "roman" in line)
    assert "abcdefabcdef → 111111111111" in roman
    assert "RankTooHigh" in roman
    assert "elsewhere" not in ran.out
    everywhere = (await run("status", "-A", "-o", "json")).document
    assert [(line["namespace"], line["name"]) for line in everywhere["bases"]] == [
        ("elsewhere", "other"),
        ("team", "numerals"),
    ]
    assert [line["name"] for line in everywhere["adapters"]] == ["french", "roman", "swahili"]
    assert everywhere["adapters"][0]["standing"] == {"ready": "True", "reason": "Serving", "message": "it answers"}


async def test_options_stand_before_or_after_the_command(run: Any) -> None:
    before = await run("-n", "elsewhere", "status")
    assert before.out == (await run("status", "-n", "elsewhere")).out
    assert "There is no BaseModelDeployment" in before.out
    assert "There is no" in (await run("status", "--context", "elsewhere")).out  # it means `default`


async def test_tree_shows_what_each_pod_keeps(run: Any) -> None:
    ran = await run("tree")
    assert ran.status == 0
    text = ran.out
    assert "├── Pod a  Ready\n│   ├── french  abcdefabcdef  Device  Ready\n" in text
    assert "Pod b  NotReady: Unschedulable: 0/3 nodes are available" in text
    assert "roman   111111111111  Device  Failed  not the stable revision  RankTooHigh: rank  [31m128" in text
    assert "swahili" in text.partition("kept by no pod")[2]
    assert "\x1b" not in text  # neither colour, nor what a message smuggles
    tree = (await run("tree", "numerals", "-o", "json")).document
    (node,) = tree["bases"]
    assert [(pod["name"], pod["isReady"]) for pod in node["pods"]] == [("a", True), ("b", False)]
    assert [(held["name"], held["isStable"]) for held in node["pods"][0]["adapters"]] == [
        ("french", True),
        ("roman", False),
    ]
    assert node["pods"][0]["adapters"][1]["message"] == "rank \x1b[31m128 is above 64"


async def test_why_says_yes_by_its_exit_status(run: Any) -> None:
    ran = await run("why", "french")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("LoraAdapter team/french is Ready: Serving: it answers\n")
    assert "  no  " not in ran.out
    assert re.search(r"operator system/lorafleet-operator works on the base, and renewed its Lease \d+ s ago", ran.out)


async def test_why_names_the_check_the_reason_and_what_to_do(run: Any, kube: FakeKube) -> None:
    involved = {"kind": "LoraAdapter", "name": "roman", "uid": "uid-roman"}
    event = {
        "type": "Warning",
        "reason": "RankTooHigh",
        "message": "a: rank 128",
        "lastTimestamp": "2026-11-24T12:00:00Z",
    }
    kube.put("events", {"metadata": {"name": "roman.1", "namespace": "team"}, "involvedObject": involved, **event})
    ran = await run("why", "roman")
    assert ran.status == 1
    lines = ran.out.splitlines()
    at = lines.index("  no  The revision is served, or no pod failed to load it.")
    assert lines[at + 1] == "      RankTooHigh: a: rank 128 is above 64"
    assert lines[at + 2] == "      → Raise it on the base, or train smaller."
    assert any("2026-11-24 12:00:00   Warning   RankTooHigh" in line for line in lines)
    assert any("Pod b is not ready: Unschedulable" in line for line in lines)
    document = (await run("why", "roman", "-o", "json")).document
    assert document["verdict"]["isReady"] is False
    assert [answer["outcome"] for answer in document["verdict"]["acceptance"]] == ["ok"] * 9
    assert document["events"][0]["reason"] == "RankTooHigh"


async def test_why_says_that_the_operator_is_away(run: Any, kube: FakeKube) -> None:
    long_ago = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    kube.put(
        "leases", {"metadata": {"name": "lorafleet-operator", "namespace": "system"}, "spec": {"renewTime": long_ago}}
    )
    ran = await run("why", "french")
    assert re.search(r"has not renewed its Lease for 3\d\d s by this machine's clock: it is away", ran.out)


async def test_adapter_that_is_not_there_has_near_names(run: Any, kube: FakeKube) -> None:
    kube.put("loraadapters", adapter("numbers", spec={"servedName": "team/frensh"}))
    ran = await run("why", "frensh")
    assert ran.status == 3
    assert ran.err == "error: there is no LoraAdapter frensh in namespace team; there is french\n"
    elsewhere = await run("why", "roman", "-n", "default")
    assert elsewhere.err.endswith("there is roman in namespace team\n")
    served = await run("why", "team/frensh")
    assert "numbers, which is served as team/frensh" in served.err
    assert "there is numerals" in (await run("tree", "numeral")).err


async def test_who_may_see_one_namespace_only_gets_what_there_is(run: Any, kube: FakeKube) -> None:
    kube.forbid("", "loraadapters", "basemodeldeployments")
    kube.forbid("team", "pods", "events")
    kube.forbid("system", "leases")
    ran = await run("why", "french")
    assert ran.status == 0
    notes = [line for line in ran.out.splitlines() if line.startswith("note: ")]
    assert "note: pods in namespace team are not shown: you may not list them" in notes
    assert "note: leases.coordination.k8s.io in namespace system are not shown: you may not get them" in notes
    tree = await run("tree")
    assert tree.status == 0
    assert "Pod a\n" in tree.out  # known by the statuses of adapters


async def test_what_is_essential_and_forbidden_is_named(run: Any, kube: FakeKube) -> None:
    kube.forbid("team", "loraadapters")
    kube.forbid("", "loraadapters")
    for words in (("status",), ("tree",), ("why", "french")):
        ran = await run(*words)
        assert ran.status == 3
        assert ran.err.startswith("error: you lack the verb list on loraadapters.lorafleet.io in namespace team: ")
        assert ran.out == ""


async def test_why_without_a_right_on_the_base_goes_by_the_operators_word(run: Any, kube: FakeKube) -> None:
    kube.forbid("", "basemodeldeployments")
    kube.forbid("team", "basemodeldeployments")
    ran = await run("why", "french")
    assert ran.status == 0
    assert "basemodeldeployments.lorafleet.io in namespace team are not shown" in ran.out


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (404, "NotFound", "the cluster has no basemodeldeployments.lorafleet.io: install the chart lorafleet-crds"),
        (401, "Unauthorized", "the API server does not know you"),
        (500, "InternalError", "list basemodeldeployments.lorafleet.io in namespace team: 500"),
    ],
)
async def test_other_answers_of_the_api_server_are_explained(
    run: Any, kube: FakeKube, status: int, reason: str, words: str
) -> None:
    def refuse(verb: str, path: str) -> None:
        raise Refused(status, reason)

    kube.before = refuse
    ran = await run("status")
    assert ran.status == 3
    assert ran.err.startswith(f"error: {words}")


async def test_no_cluster_is_said(run: Any, config: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    ran = await run("status", kubeconfig=missing)
    assert (ran.status, f"kubeconfig {missing}" in ran.err) == (3, True)
    ran = await run("status", "--context", "nowhere")
    assert (ran.status, "no cluster by context nowhere" in ran.err) == (3, True)
    silent = tmp_path / "silent"
    rewritten(config, silent, lambda document: document["clusters"][0]["cluster"].update(server="http://127.0.0.1:9"))
    ran = await run("status", kubeconfig=silent)
    assert (ran.status, "the API server does not answer" in ran.err) == (3, True)


def rewritten(config: Path, to: Path, change: Callable[[Json], None]) -> None:
    document = yaml.safe_load(config.read_text())
    change(document)
    to.write_text(yaml.safe_dump(document))


async def test_kubeconfig_is_found_as_kubectl_finds_it(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several files the first that says something is right."""

    def as_second(document: Json) -> None:
        document["current-context"] = "elsewhere"

    empty, second = tmp_path / "empty", tmp_path / "second"
    rewritten(config, empty, dict.clear)
    rewritten(config, second, as_second)
    for paths, namespace in ((f"{empty}:{config}:{second}", "team"), (f"{second}:{config}", "default")):
        monkeypatch.setenv("KUBECONFIG", paths)
        found = await connect(None, None)
        await found.api.close()
        assert found.namespace == namespace
    monkeypatch.setenv("KUBECONFIG", str(empty))
    with pytest.raises(NoCluster, match="no current context"):
        await connect(None, None)


OLD, NEW = "abcdefabcdef", "111111111111"
TIMES = {"startTime": "2026-11-24T12:00:00Z", "lastProgressTime": "2026-11-24T12:01:00Z", "readyPods": 1}
UNDER_WAY = ("False", "Loading", "revision 111111111111 is ready on 1 of 2 pods")


def rolling(ready: tuple[str, str, str] = UNDER_WAY, *, stalled: bool = False, **status: Any) -> Json:
    """French on its way to another revision."""
    made = adapter("french", ready, **{"desiredRevision": NEW, "rollout": {"revision": NEW, **TIMES}, **status})
    if stalled:
        made["status"]["conditions"].append(condition("Stalled", "True", ready[1], ready[2]))
    return made


def by_steps(phase: str, **more: Any) -> Json:
    counts = {"requests": 120, "faults": 6, "lost": 0, "p95Milliseconds": 230}
    window = {"since": "2026-11-24T12:00:00Z", "until": "2026-11-24T12:05:00Z", "gateways": 2, "silentGateways": 1}
    evidence = {
        **window,
        "canary": counts,
        "stable": {"requests": 900},
        "judgement": "Inconclusive",
        "message": "gw-2 is silent",
    }
    steps = {"stepIndex": 1, "numSteps": 4, "reason": "Paused", "message": "waits for a person"}
    return {"revision": NEW, **TIMES, "phase": phase, "evidence": evidence, **steps, **more}


@pytest.mark.parametrize(
    ("body", "stand"),
    [
        (adapter("french"), "Done"),
        (rolling(), "UnderWay"),
        (rolling(desiredRevision=None), "UnderWay"),
        (rolling(observedGeneration=7), "Unknown"),
        (rolling(("False", "RankTooHigh", "a: rank 128"), stalled=True), "Stalled"),
        (adapter("french", ("False", "Suspended", "changes are not acted on: source")), "Stalled"),
        (adapter("french", ("True", "Serving", "it answers"), spec={"suspend": True}), "Done"),
        (rolling(rollout=by_steps("Progressing")), "UnderWay"),
        (rolling(rollout=by_steps("Paused")), "Paused"),
        (rolling(rollout=by_steps("RolledBack"), stalled=True), "RolledBack"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_rollout_status_says_where_it_stands(run: Any, kube: FakeKube, body: Json, stand: str) -> None:
    kube.delete("loraadapters", "team", "french")
    kube.put("loraadapters", body)
    ran = await run("rollout", "status", "french", "-o", "json")
    assert (ran.document["stand"], ran.status) == (stand, 0 if stand == "Done" else 1)


async def test_rollout_by_steps_is_told_with_shares_and_evidence(run: Any, kube: FakeKube) -> None:
    shares = [{"revision": OLD, "weight": 90}, {"revision": NEW, "weight": 10}]
    digest = f"sha256:{'a' * 64}"
    history = [{"revision": OLD, "digest": digest, "since": "2026-11-20T08:00:00Z", "result": "Promoted"}]
    kube.put("loraadapters", rolling(rollout=by_steps("Paused"), traffic=shares, history=history))
    lines = (await run("rollout", "status", "french")).out.splitlines()
    assert lines[0].startswith("LoraAdapter team/french  Paused: Loading: ")
    assert "Paused, step 2 of 4 (Paused: waits for a person)" in lines[1]
    assert f"   90 % of requests go to {OLD}, stable" in lines
    assert f"   10 % of requests go to {NEW}, canary" in lines
    assert "  judged Inconclusive by 1 of 2 gateways, 12:00:00 to 12:05:00 UTC: gw-2 is silent" in lines
    assert "    canary  120 requests, 6 faults, 0 lost, p95 230 ms to the first byte" in lines
    assert lines[-1] == f"    {OLD}  2026-11-20 08:00:00 UTC  Promoted"


ASKED = {"revision": NEW, "checksHash": "abcdefabcdef", "time": "2026-11-24T12:00:30Z"}
REFUSED = {
    **ASKED,
    "result": "Failed",
    "check": "four",
    "message": 'expected an answer equal to "IV", and it is "quatre"',
}


@pytest.mark.parametrize(
    ("verify", "line"),
    [
        ({**ASKED, "result": "Passed"}, f"  verify Passed by revision {NEW}, 2026-11-24 12:00:30 UTC"),
        (
            REFUSED,
            f"  verify Failed by revision {NEW}, 2026-11-24 12:00:30 UTC, check four: "
            'expected an answer equal to "IV", and it is "quatre"',
        ),
    ],
    ids=lambda value: value["result"] if isinstance(value, dict) else "",
)
async def test_rollout_status_tells_what_came_of_the_questions(
    run: Any, kube: FakeKube, verify: Json, line: str
) -> None:
    kube.put("loraadapters", rolling(rollout=by_steps("Progressing"), verify=verify))
    assert line in (await run("rollout", "status", "french")).out.splitlines()
    assert (await run("rollout", "status", "french", "-o", "json")).document["verify"] == {
        "check": None,
        "message": None,
        **verify,
    }


async def test_verdict_of_a_revision_without_steps_is_told(run: Any, kube: FakeKube) -> None:
    """Nothing rolls out any more, and it is the only place that says which check failed."""
    kube.put(
        "loraadapters", rolling(("False", "VerifyFailed", "check four"), stalled=True, rollout=None, verify=REFUSED)
    )
    lines = (await run("rollout", "status", "french")).out.splitlines()
    assert lines[0].startswith("LoraAdapter team/french  Stalled: VerifyFailed")
    assert lines[1].startswith(f"  verify Failed by revision {NEW}")


async def test_control_characters_of_an_answer_do_not_reach_the_terminal(run: Any, kube: FakeKube) -> None:
    kube.put("loraadapters", rolling(verify={**REFUSED, "message": "it is \x1b[31mred\nnext"}))
    told = (await run("rollout", "status", "french")).out
    assert "\x1b" not in told
    assert "red\nnext" not in told


def annotations(kube: FakeKube) -> Json:
    found: Json = kube.get("loraadapters", "team", "french")["metadata"].get("annotations", {})
    return found


def annotated(body: Json, **values: str) -> Json:
    named = {f"lorafleet.io/{name}": value for name, value in values.items()}
    return {**body, "metadata": {**body["metadata"], "annotations": {"own": "1", **named}}}


async def test_promotion_goes_past_the_step_that_waits(run: Any, kube: FakeKube) -> None:
    """It takes away an abortion of the revision, which would win; other annotations stay."""
    kube.put("loraadapters", annotated(rolling(rollout=by_steps("Paused", reason="CanaryPaused")), abort=NEW))
    ran = await run("rollout", "promote", "french")
    assert (ran.status, ran.out) == (0, f"LoraAdapter team/french  lorafleet.io/promote={NEW}:1\n")
    assert annotations(kube) == {"own": "1", "lorafleet.io/promote": f"{NEW}:1"}
    ran = await run("rollout", "promote", "french", "--full", "-o", "json")
    assert ran.document["value"] == annotations(kube)["lorafleet.io/promote"] == NEW


async def test_promotion_that_answered_an_earlier_try_is_taken_away_first(run: Any, kube: FakeKube) -> None:
    waiting = by_steps("Paused", reason="AnalysisFailed", spentPromotion=f"{NEW}:1")
    kube.put("loraadapters", annotated(rolling(rollout=waiting), promote=f"{NEW}:1"))
    seen: list[Json] = []

    def look(verb: str, path: str) -> None:
        if verb == "GET" and "lorafleet.io/promote" not in annotations(kube):
            seen.append(annotations(kube))
            kube.put("loraadapters", annotated(rolling(rollout=by_steps("Paused", reason="AnalysisFailed"))))

    kube.before = look
    ran = await run("rollout", "promote", "french")
    assert ran.status == 0, ran.err
    assert seen == [{"own": "1"}]
    assert annotations(kube)["lorafleet.io/promote"] == f"{NEW}:1"


async def test_abortion_takes_a_promotion_away(run: Any, kube: FakeKube) -> None:
    kube.put("loraadapters", annotated(rolling(rollout=by_steps("Progressing")), promote=f"{NEW}:1"))
    ran = await run("rollout", "abort", "french")
    assert (ran.status, ran.out) == (0, f"LoraAdapter team/french  lorafleet.io/abort={NEW}\n")
    assert annotations(kube) == {"own": "1", "lorafleet.io/abort": NEW}


@pytest.mark.parametrize(
    ("words", "rollout", "said"),
    [
        ("promote", None, "has no rollout by steps under way"),
        ("abort", None, "has no rollout by steps under way"),
        ("promote", by_steps("Progressing"), "--full goes past all steps"),
        ("promote", by_steps("Paused", reason="Suspended"), "no step of LoraAdapter team/french waits for a person"),
        ("promote", by_steps("RolledBack"), "RolledBack: waits for a person; --full"),
        ("promote --full", by_steps("Promoting"), "is being promoted"),
        ("abort", by_steps("RolledBack"), "is given up"),
    ],
)
async def test_what_waits_for_nobody_is_not_decided(
    run: Any, kube: FakeKube, words: str, rollout: Json | None, said: str
) -> None:
    kube.put("loraadapters", annotated(rolling(rollout=rollout)))
    ran = await run("rollout", *words.split(), "french")
    assert ran.status == 3
    assert said in ran.err
    assert annotations(kube) == {"own": "1"}


async def test_who_may_not_write_is_told_which_verb_is_missing(run: Any, kube: FakeKube) -> None:
    kube.put("loraadapters", rolling(rollout=by_steps("Progressing")))

    def refuse(verb: str, path: str) -> None:
        if verb == "PATCH":
            raise Refused(403, "Forbidden")

    kube.before = refuse
    ran = await run("rollout", "abort", "french")
    assert ran.status == 3
    assert "you lack the verb patch on loraadapters.lorafleet.io in namespace team" in ran.err


def past(revision: str, **more: Any) -> Json:
    return {"revision": revision, "digest": f"sha256:{revision}{'0' * 52}", "since": "2026-11-20T08:00:00Z", **more}


V1 = past("aaaaaaaaaaa1", source={"name": "bucket", "path": "v1"})
V2 = past("aaaaaaaaaaa2", source={"name": "bucket", "path": "v2"})
GIVEN_UP = past("aaaaaaaaaaa3", result="RolledBack", source={"name": "bucket", "path": "v3"})
OF_A_HUB = past("aaaaaaaaaaa4", source={"name": "hub", "repo": "a/b", "revision": "main"}, resolvedRevision="c0ffee")


def with_history(*history: Json, stable: Json, desired: Json, **spec: Any) -> Json:
    made = rolling(desiredRevision=desired["revision"], stableRevision=stable["revision"], history=list(history))
    made["spec"] |= {"source": desired["source"], **spec}
    return made


@pytest.mark.parametrize(
    ("body", "words", "source"),
    [
        (with_history(V2, V1, stable=V2, desired=V2), [], V1["source"]),
        (with_history(GIVEN_UP, V2, V1, stable=V2, desired=GIVEN_UP), [], V2["source"]),
        (with_history(GIVEN_UP, V2, V1, stable=V2, desired=V2), [], V1["source"]),
        (with_history(GIVEN_UP, V2, V1, stable=V2, desired=V2), ["--to-revision", "aaaaaaaaaaa3"], GIVEN_UP["source"]),
        (with_history(V2, OF_A_HUB, stable=V2, desired=V2), [], {"name": "hub", "repo": "a/b", "revision": "c0ffee"}),
        (with_history(OF_A_HUB, V1, stable=OF_A_HUB, desired=OF_A_HUB), [], V1["source"]),
    ],
)
async def test_undo_asks_for_an_earlier_source_again(
    run: Any, kube: FakeKube, body: Json, words: list[str], source: Json
) -> None:
    kube.put("loraadapters", body)
    ran = await run("rollout", "undo", "french", *words)
    assert ran.status == 0, ran.err
    assert "again: source {name: " in ran.out
    spec = kube.get("loraadapters", "team", "french")["spec"]
    assert spec["source"] == source
    assert "digest" not in spec


async def test_undo_changes_a_digest_that_is_there(run: Any, kube: FakeKube) -> None:
    kube.put("loraadapters", with_history(V2, V1, stable=V2, desired=V2, digest=V2["digest"]))
    ran = await run("rollout", "undo", "french", "-o", "json")
    assert ran.document["digest"] == kube.get("loraadapters", "team", "french")["spec"]["digest"] == V1["digest"]


@pytest.mark.parametrize(
    ("body", "words", "said"),
    [
        (with_history(V2, GIVEN_UP, stable=V2, desired=V2), [], "has no revision to go back to"),
        (with_history(V2, V1, stable=V2, desired=V2), ["--to-revision", "b"], "has no revision b"),
        (
            with_history(V2, past("aaaaaaaaaaa0"), stable=V2, desired=V2),
            [],
            "it is not known where revision aaaaaaaaaaa0",
        ),
    ],
)
async def test_what_cannot_be_undone_is_said(run: Any, kube: FakeKube, body: Json, words: list[str], said: str) -> None:
    kube.put("loraadapters", body)
    ran = await run("rollout", "undo", "french", *words)
    assert ran.status == 3
    assert said in ran.err
    assert kube.get("loraadapters", "team", "french")["spec"]["source"] == V2["source"]


async def test_rollout_watch_tells_each_change_and_ends_with_it(run: Any, kube: FakeKube) -> None:
    kube.put("loraadapters", rolling())
    steps = iter(
        [
            lambda: None,
            lambda: None,  # nothing new: nothing is said
            lambda: kube.put("loraadapters", rolling(desiredRevision=NEW, stableRevision=NEW, rollout=None)),
        ]
    )

    def at_list(verb: str, path: str) -> None:
        next(steps)()

    kube.before = at_list
    ran = await run("rollout", "watch", "french", "--timeout", "60")
    assert ran.status == 0
    assert ran.out.splitlines() == [
        f"UnderWay: {OLD} 100 %; Loading: revision {NEW} is ready on 1 of 2 pods",
        f"Done: {NEW} 100 %; Loading: revision {NEW} is ready on 1 of 2 pods",
    ]


async def test_rollout_watch_ends_in_time_and_when_the_adapter_goes(run: Any, kube: FakeKube) -> None:
    kube.put("loraadapters", rolling())
    ran = await run("rollout", "watch", "french", "--timeout", "0.1")
    assert (ran.status, len(ran.out.splitlines())) == (1, 1)
    kube.before = lambda verb, path: kube.find("loraadapters", "team", "french") and gone()

    def gone() -> None:
        if seen:
            kube.delete("loraadapters", "team", "french")
        seen.append(1)

    seen: list[int] = []
    ran = await run("rollout", "watch", "french")
    assert ran.status == 3
    assert "there is no LoraAdapter french in namespace team" in ran.err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["rollout"],
        ["rollout", "status"],
        ["rollout", "watch", "a", "--timeout", "0"],
        ["why"],
        ["why", "a", "b"],
        ["why", "a", "-A"],
        ["-A", "why", "a"],
        ["status", "-o", "yaml"],
        ["wye"],
    ],
)
def test_wrong_use_is_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith("usage: kubectl lorafleet")


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "why" in capsys.readouterr().out


class Terminal:
    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "environment", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colour_is_for_terminals_of_people_who_want_it(is_terminal: bool, environment: Json, expected: bool) -> None:
    assert paint.has_colour(Terminal(is_terminal=is_terminal), environment) is expected


def test_coloured_tables_stay_aligned() -> None:
    rows = [["a", ("True", paint.Colour.GOOD), "x"], ["long", ("Unknown", paint.Colour.BAD), "y"]]
    coloured = paint.Painter(is_coloured=True).table(["N", "READY", "M"], rows)
    plain = paint.Painter(is_coloured=False).table(["N", "READY", "M"], rows)
    assert "\x1b[32mTrue\x1b[0m" in coloured[1]
    for colour in ("\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"):
        coloured = [line.replace(colour, "") for line in coloured]
    assert coloured == plain


async def test_program_starts_without_the_operators_framework(config: Path) -> None:
    code = (
        "import sys; from lorafleet_operator.kubectl import cli; "
        "status = cli.main(['status', '--kubeconfig', sys.argv[1]]); "
        "sys.exit(status or ('kopf' in sys.modules) * 9)"
    )
    paths = ":".join(str(ROOT / name / "src") for name in ("contract", "common", "operator"))
    environment = {"PYTHONPATH": paths, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(config)],
        check=False,
        text=True,
        capture_output=True,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "numerals" in done.stdout
    nobody_reads, output = os.pipe()
    os.close(nobody_reads)
    command = [sys.executable, "-m", "lorafleet_operator.kubectl", "status", "--kubeconfig", str(config)]
    done = await asyncio.to_thread(
        subprocess.run, command, check=False, text=True, stdout=output, stderr=subprocess.PIPE, env=environment
    )
    os.close(output)
    assert (done.returncode, done.stderr) == (0, "")  # who reads has left


def test_page_has_every_command_option_and_exit_status() -> None:
    page = (ROOT / "docs" / "kubectl-lorafleet.md").read_text()

    def check(command: str, parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            for option in action.option_strings:
                assert f"`{option}`" in page or f"`{option} " in page, option
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    assert f"{command} {name}" in page
                    check(f"{command} {name}", inner)

    check("kubectl lorafleet", cli.parser())
    for status in (cli.READY, cli.NOT_READY, cli.USED_WRONGLY, cli.NO_ANSWER):
        assert f"\n| {status} | " in page
