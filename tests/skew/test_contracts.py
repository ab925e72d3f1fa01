"""Operator, gateway and pods of neighbouring releases understand each other: today's contract against a frozen copy of each
released one. Upgrades replace operator and gateways first and pods one by one, and a rollback goes the other way."""

import types
import typing
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel
from skew.contract_0_1_0 import admin as released

from lorafleet_contract import admin, routes
from lorafleet_contract.evidence import ErrorClass, Evidence

RELEASED = {"0.1.0": released}
today = types.SimpleNamespace(**{**vars(admin), **vars(routes)})
REQUESTS = ("CatalogueWrite", "ResolveRequest", "DrainRequest")
"""What an operator writes and a pod reads."""
ANSWERS = ("PodState", "ResolveAnswer", "AdminError", "DrainAnswer", "Routes")
"""What a pod writes and an operator or a gateway reads."""
DIGEST = "sha256:" + "a" * 64

SOURCE = {"source": {"name": "models", "path": "french"}}
RESOLVED = {
    "ref": {"name": "hub", "repo": "org/french", "revision": "c" * 40},
    "digest": DIGEST,
    "files": [{"path": "adapter_config.json", "sizeBytes": 5, "sha256": "b" * 64, "versionId": "v1"}],
    "facts": {"rank": 8, "sizeBytes": 1000, "targetModules": ["q_proj"], "baseModelName": "n"},
}
OBSERVED = {
    "name": "french",
    "revision": "a" * 12,
    "digest": DIGEST,
    "owner": "operator",
    "residency": "Resident",
    "pinned": True,
    "stable": True,
    "state": "Ready",
    "tier": "Device",
    "numInFlight": 2,
    "rank": 8,
    "rankPages": 1,
    "sizeBytes": 1000,
    "lastUsed": 1.5,
}
BUDGETS = dict.fromkeys(
    (
        *("maxResidentAdapters", "maxRank", "rankPage", "totalRankPages", "usedRankPages"),
        *("hostCacheBytes", "hostUsedBytes", "diskCacheBytes", "diskUsedBytes"),
    ),
    1,
)
DOCUMENTS: dict[str, dict[str, Any]] = {
    "DrainRequest": {"timeoutSeconds": 5},
    "DrainAnswer": {"numInFlight": 3},
    "AdminError": {"reason": "SourceNotAllowed", "message": "no", "retryable": True},
    "CatalogueWrite": {
        "fence": 1,
        "generation": 2,
        "adapters": [{"name": "french", "source": RESOLVED, "residency": "OnDemand", "pinned": True, "stable": False}],
        "removed": [{"name": "german", "revision": "a" * 12}],
        "drainTimeoutSeconds": 5.0,
    },
    "ResolveAnswer": {"resolved": RESOLVED},
    "ResolveRequest": {**SOURCE, "expectedDigest": DIGEST},
    "PodState": {
        "bootId": "b",
        "generation": 3,
        "fence": 1,
        "catalogueGeneration": 2,
        "ready": True,
        "draining": False,
        "base": {"servedName": "n", "maxModelLen": 256, "dtype": "float32", "device": "cpu"},
        "budgets": BUDGETS,
        "adapters": [OBSERVED],
        "localFailures": [{"name": "x", "reason": "R", "message": "m"}],
    },
    "Routes": {
        "bootId": "b",
        "generation": 3,
        "base": "n",
        "ready": True,
        "draining": False,
        "maxModelLen": 256,
        "adapters": [{"name": "french", "revision": "a" * 12, "stable": True, "tier": "Host"}],
        "numRunning": 1,
        "numWaiting": 2,
    },
}


def sent(document: BaseModel) -> str:
    """As operator and pod put a document on the wire."""
    return document.model_dump_json(by_alias=True, exclude_none=True)


@pytest.mark.parametrize("version", RELEASED)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_either_side_reads_what_the_other_wrote(version: str, name: str) -> None:
    ours, theirs = getattr(today, name), getattr(RELEASED[version], name)
    for writer, reader in ((ours, theirs), (theirs, ours)):
        written = writer.model_validate(DOCUMENTS[name])
        read = reader.model_validate_json(sent(written))
        assert sent(writer.model_validate_json(sent(read))) == sent(written), "nothing is lost on the way and back"


@pytest.mark.parametrize("name", [*REQUESTS, *ANSWERS, "AskRequest", "AskAnswer"])
def test_a_field_of_the_next_release_is_passed_over(name: str) -> None:
    """A newer operator may tell an older pod more than it knows, and the other way round."""
    model = getattr(today, name)
    assert model.model_config["extra"] == "ignore"
    if name in DOCUMENTS:
        document = {**DOCUMENTS[name], "aFieldOfTheNextRelease": {"x": 1}}
        assert model.model_validate(document) == model.model_validate(DOCUMENTS[name])


EVIDENCE: dict[str, Any] = {
    "bootId": "b",
    "sequence": 7,
    "boundsSeconds": [0.1, 1.0],
    "revisions": [
        {
            "namespace": "team",
            "base": "n",
            "adapter": "french",
            "revision": "a" * 12,
            "began": 3,
            "numRequests": 5,
            "numFallbacks": 1,
            "errors": {"server_error": 2, "client_left": 1},
            "firstByte": {"sumSeconds": 0.2, "buckets": [1, 1, 0]},
            "whole": {"sumSeconds": 1.2, "buckets": [0, 2, 0]},
        }
    ],
    "held": [{"namespace": "team", "base": "n", "numHeld": 2, "numArrived": 9}],
    "numUntracked": 1,
}
"""Of today's gateways, which later operators meet; no release before has it."""


def test_evidence_is_on_the_wire_as_the_reference_says() -> None:
    read = Evidence.model_validate(EVIDENCE)
    assert read.model_dump(mode="json", by_alias=True) == EVIDENCE
    assert read.revisions[0].num_faults == 2


def test_a_gateway_that_holds_nothing_yet_says_nothing_of_it() -> None:
    told = {key: value for key, value in EVIDENCE.items() if key != "held"}
    assert Evidence.model_validate(told).held is None


def test_evidence_of_a_gateway_without_fallbacks_is_read() -> None:
    row = {name: value for name, value in EVIDENCE["revisions"][0].items() if name != "numFallbacks"}
    assert Evidence.model_validate({**EVIDENCE, "revisions": [row]}).revisions[0].num_fallbacks == 0


def test_evidence_of_a_newer_gateway_is_read() -> None:
    """With fields and classes of errors that nobody knew; what is not known to be harmless is held against the revision."""
    row = {**EVIDENCE["revisions"][0], "numTokens": 99}
    row["errors"] = {**row["errors"], "of_the_next_release": 4}
    read = Evidence.model_validate({**EVIDENCE, "revisions": [row], "region": "x"})
    assert read.revisions[0].num_faults == 6
    assert "of_the_next_release" not in set(ErrorClass)


@pytest.mark.parametrize("version", RELEASED)
def test_pods_of_a_release_read_todays_writes(version: str) -> None:
    then = RELEASED[version]
    assert not list(problems(today.CatalogueWrite, then.CatalogueWrite, "CatalogueWrite"))
    assert not list(problems(today.ResolveRequest, then.ResolveRequest, "ResolveRequest"))


@pytest.mark.parametrize("version", RELEASED)
def test_todays_pods_read_the_writes_of_a_release(version: str) -> None:
    then = RELEASED[version]
    for name in REQUESTS:
        assert not list(problems(getattr(then, name), getattr(today, name), name))


@pytest.mark.parametrize("version", RELEASED)
def test_answers_are_read_in_both_directions(version: str) -> None:
    then = RELEASED[version]
    for name in ANSWERS:
        assert not list(problems(getattr(then, name), getattr(today, name), name))
        if name != "Routes":
            assert not list(problems(getattr(today, name), getattr(then, name), name))


def test_the_comparison_notices_what_would_break() -> None:
    class Old(today.Wire):
        needed: int
        tier: released.Tier = released.Tier.DISK

    class New(today.Wire):
        further: str = "x"
        tier: today.AdapterState = today.AdapterState.READY

    found = list(problems(New, Old, "Old"))
    assert [problem.split(":")[0] for problem in found] == ["Old.further", "Old.needed", "Old.tier"]


def problems(writer: type[BaseModel], reader: type[BaseModel], where: str) -> typing.Iterator[str]:
    """Yield why a reader would refuse what a writer may write: by fields, requiredness and values of enums."""
    if reader.model_config.get("extra") == "forbid":
        for name in sorted(writer.model_fields.keys() - reader.model_fields.keys()):
            yield f"{where}.{name}: unknown to a reader that refuses unknown fields"
    for name, field in sorted(reader.model_fields.items()):
        theirs = writer.model_fields.get(name)
        if theirs is None:
            if field.is_required():
                yield f"{where}.{name}: required by the reader and not written"
            continue
        if field.is_required() and not theirs.is_required() and theirs.default is None:
            yield f"{where}.{name}: required by the reader and left out at times"
        yield from _of_types(theirs.annotation, field.annotation, f"{where}.{name}")


def _of_types(writer: Any, reader: Any, where: str) -> typing.Iterator[str]:
    written, read = (list(_leaves(annotation)) for annotation in (writer, reader))
    enums = {leaf.value for kind in read if issubclass(kind, Enum) for leaf in kind}
    for kind in written:
        if issubclass(kind, Enum) and (unknown := {leaf.value for leaf in kind} - enums):
            yield f"{where}: values that the reader does not know: {sorted(unknown)}"
        if issubclass(kind, BaseModel):
            same = [other for other in read if issubclass(other, BaseModel)]
            if not any(not list(problems(kind, other, where)) for other in same):
                yield f"{where}: {[list(problems(kind, other, where)) for other in same]}"


def _leaves(annotation: Any) -> typing.Iterator[type]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list, tuple, typing.Annotated, dict):
        for part in typing.get_args(annotation):
            yield from _leaves(part)
    elif isinstance(annotation, type):
        yield annotation
