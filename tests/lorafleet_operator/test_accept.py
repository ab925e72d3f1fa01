"""Which adapters are taken: judged from the resources and the names of the cluster."""

from datetime import datetime

import pytest
from support import operator_views as v

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource
from lorafleet_operator.decide.accept import refusal_of
from lorafleet_operator.decide.views import Claim


def reason(adapter, base, **more) -> Reason | None:
    refusal = refusal_of(adapter, v.snapshot(adapter, base=base, **more))
    return refusal.reason if refusal is not None else None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"name": "models", "path": "french"}, None),
        ({"name": "bucket", "path": "a/b"}, None),
        ({"name": "hub", "repo": "acme/french"}, None),
        ({"name": "hub", "repo": "acme/french", "revision": "main"}, None),
        ({"name": "hub", "repo": "solo/one"}, None),
        ({"name": "hub", "repo": "solo/two"}, Reason.SOURCE_NOT_ALLOWED),
        ({"name": "hub", "repo": "acmeevil/french"}, Reason.SOURCE_NOT_ALLOWED),
        ({"name": "hub", "repo": "acme"}, Reason.SOURCE_NOT_ALLOWED),
        ({"name": "hub", "path": "acme/french"}, Reason.SOURCE_NOT_ALLOWED),
        ({"name": "models", "repo": "acme/french"}, Reason.SOURCE_NOT_ALLOWED),
        ({"name": "elsewhere", "path": "french"}, Reason.SOURCE_NOT_ALLOWED),
    ],
)
def test_only_declared_sources(source: dict[str, str], expected: Reason | None) -> None:
    assert reason(v.adapter(source=source), v.base()) == expected


def test_hub_without_a_list_allows_every_repository() -> None:
    base = v.base(adapterSources=[{"name": "hub", "huggingFace": {}}])
    assert reason(v.adapter(source={"name": "hub", "repo": "any/one"}), base) is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"name": "reg", "repo": "team/deep/red", "revision": "v1"}, None),
        ({"name": "reg", "repo": "team"}, Reason.SOURCE_NOT_ALLOWED),
        ({"name": "reg", "path": "team/red"}, Reason.SOURCE_NOT_ALLOWED),
        ({"name": "all", "repo": "other/red"}, None),
    ],
)
def test_repositories_of_a_registry(source: dict[str, str], expected: Reason | None) -> None:
    oci = {"endpoint": "https://reg.example"}
    base = v.base(adapterSources=[{"name": "reg", "oci": {**oci, "repos": ["team/*"]}}, {"name": "all", "oci": oci}])
    assert reason(v.adapter(source=source), base) == expected


def test_kind_of_the_source_is_named() -> None:
    base = v.base(adapterSources=[{"name": "reg", "oci": {"endpoint": "https://reg.example"}}])
    adapter = v.adapter(source={"name": "reg", "path": "red"})
    refusal = refusal_of(adapter, v.snapshot(adapter, base=base))
    assert refusal is not None
    assert "is a registry: it takes a repo" in refusal.message


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [([], Reason.BASE_NOT_ALLOWED), (["others"], Reason.BASE_NOT_ALLOWED), (["friends"], None), (["*"], None)],
)
def test_another_namespace_needs_to_be_allowed(allowed: list[str], expected: Reason | None) -> None:
    assert reason(v.adapter(namespace="friends"), v.base(allowedNamespaces=allowed)) == expected


def test_without_a_base_it_waits() -> None:
    refusal = refusal_of(v.adapter(), v.snapshot(base=None))
    assert refusal is not None
    assert refusal.reason is Reason.BASE_NOT_FOUND
    assert refusal.retryable
    assert refusal.keeps_serving
    assert "team/base" in refusal.message


def test_name_belongs_to_the_one_that_claims_it() -> None:
    rival = {"french": Claim("uid-older", "LoraAdapter other/francais")}
    refusal = refusal_of(v.adapter(), v.snapshot(base=v.base(), claims=rival))
    assert refusal is not None
    assert refusal.reason is Reason.NAME_CONFLICT
    assert not refusal.keeps_serving
    assert "LoraAdapter other/francais" in refusal.message


def test_on_demand_needs_a_base_that_loads_on_demand() -> None:
    placed = v.adapter(placement={"mode": "OnDemand"})
    assert reason(placed, v.base()) is None
    assert reason(placed, v.base(lora={"loadOnDemand": "Disabled"})) is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ({"mode": "Auto", "minReplicas": 0}, "placement Auto with minReplicas 0, and"),
        ({"mode": "OnDemand"}, "placement OnDemand, and"),
        ({"mode": "Auto", "minReplicas": 1}, None),
        ({"mode": "Auto"}, None),
        ({"mode": "Fixed"}, None),
    ],
)
def test_what_is_loaded_by_requests_only_needs_a_base_that_does_so(
    placement: dict[str, object], words: str | None
) -> None:
    adapter = v.adapter(placement=placement)
    refusal = refusal_of(adapter, v.snapshot(adapter, base=v.base(lora={"loadOnDemand": "Disabled"})))
    assert (refusal is None) == (words is None)
    assert refusal is None or refusal.message.startswith(words)
    assert reason(adapter, v.base()) is None


def test_source_that_is_not_declared_any_more_does_not_stop_what_serves() -> None:
    gone = v.adapter(source={"name": "elsewhere", "path": "x"})
    refusal = refusal_of(gone, v.snapshot(gone, base=v.base()))
    assert refusal is not None
    assert refusal.keeps_serving
    assert reason(v.adapter(source={"name": "elsewhere", "path": "x"}, suspend=True), v.base()) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"name": "hub", "path": "acme/french"}, "source 'hub' of {} is a hub: it takes a repo"),
        ({"name": "bucket", "repo": "acme/french"}, "source 'bucket' of {} is a bucket: it takes a path"),
        ({"name": "models", "repo": "acme/french"}, "source 'models' of {} is a volume: it takes a path"),
        ({"name": "hub", "repo": "solo/two"}, "source 'hub' of {} does not allow repository solo/two"),
        ({"name": "x", "repo": "solo/two"}, "{} declares no source 'x'"),
    ],
)
def test_message_names_the_source_its_kind_and_what_it_takes(source: dict[str, str], message: str) -> None:
    adapter = v.adapter(source=source)
    refusal = refusal_of(adapter, v.snapshot(adapter, base=v.base()))
    assert refusal is not None
    assert refusal.message == message.format("BaseModelDeployment team/base")
    assert (refusal.retryable, refusal.keeps_serving) == (False, True)


def test_refusals_say_whether_what_serves_goes_on() -> None:
    strict = v.base(lora={"loadOnDemand": "Disabled"})
    vain = refusal_of(v.adapter(placement={"mode": "OnDemand"}), v.snapshot(base=strict))
    foreign = refusal_of(v.adapter(namespace="friends"), v.snapshot(base=v.base()))
    assert vain is not None
    assert foreign is not None
    assert (vain.retryable, vain.keeps_serving) == (False, True)
    assert (foreign.retryable, foreign.keeps_serving) == (False, False)
    assert vain.message == "placement OnDemand, and BaseModelDeployment team/base has loadOnDemand Disabled"
    assert foreign.message == "BaseModelDeployment team/base does not allow namespace friends"


def guest(**placement):
    return v.adapter(namespace="friends", placement=placement)


def test_guests_neither_pin_nor_outrank_unless_the_base_says_so() -> None:
    closed = v.base(allowedNamespaces=["*"])
    assert reason(guest(), closed) is None
    assert reason(guest(mode="All", pin=True), closed) is Reason.GUEST_NOT_ALLOWED
    assert reason(guest(priority=1), closed) is Reason.GUEST_NOT_ALLOWED
    assert reason(v.adapter(placement={"pin": True, "priority": 2**31 - 1}), closed) is None
    limits = {"maxPriority": 5, "namespaces": [{"name": "friends", "allowPin": True}]}
    open_to_friends = v.base(allowedNamespaces=["*"], lora={"guests": limits})
    assert reason(guest(pin=True, priority=5), open_to_friends) is None
    assert reason(guest(priority=6), open_to_friends) is Reason.GUEST_NOT_ALLOWED
    stranger = v.adapter(namespace="strangers", placement={"pin": True})
    assert reason(stranger, open_to_friends) is Reason.GUEST_NOT_ALLOWED


def test_guest_that_asks_too_much_goes_on_with_what_serves() -> None:
    refusal = refusal_of(guest(pin=True), v.snapshot(guest(pin=True), base=v.base(allowedNamespaces=["*"])))
    assert refusal is not None
    assert refusal.keeps_serving
    assert "does not let namespace friends pin" in refusal.message


def test_guests_have_the_names_that_the_base_allows() -> None:
    base = v.base(allowedNamespaces=["*"], lora={"guests": {"servedNames": ["friends-*"]}})
    assert reason(v.adapter(namespace="friends"), base) is Reason.GUEST_NOT_ALLOWED
    assert reason(v.adapter("friends-french", namespace="friends"), base) is None
    assert reason(v.adapter(), base) is None


@pytest.mark.parametrize(
    ("limits", "adapter", "message", "keeps_serving"),
    [
        ({"servedNames": ["a-*", "b"]}, guest(), "allows namespace friends the names a-*, b only", False),
        ({}, guest(priority=1), "does not let namespace friends have a priority above 0", True),
        ({"maxPriority": 5}, guest(priority=6), "does not let namespace friends have a priority above 5", True),
    ],
)
def test_guest_is_told_what_the_base_allows(
    limits: dict, adapter: AdapterResource, message: str, keeps_serving: bool
) -> None:
    base = v.base(allowedNamespaces=["*"], lora={"guests": limits})
    refusal = refusal_of(adapter, v.snapshot(adapter, base=base))
    assert refusal is not None
    assert refusal.message == f"BaseModelDeployment team/base {message}"
    assert refusal.keeps_serving is keeps_serving


@pytest.mark.parametrize(("until", "retryable"), [(None, False), (v.NOW, True)])
def test_name_that_is_only_reserved_may_come_free(until: datetime | None, retryable: bool) -> None:
    rival = {"french": Claim("uid-older", "LoraAdapter other/francais", until)}
    refusal = refusal_of(v.adapter(), v.snapshot(base=v.base(), claims=rival))
    assert refusal is not None
    assert refusal.retryable is retryable
    assert "french" in refusal.message


def test_a_repository_is_not_allowed_by_the_beginning_of_its_name() -> None:
    assert reason(v.adapter(source={"name": "hub", "repo": "solo/onx"}), v.base()) is Reason.SOURCE_NOT_ALLOWED


@pytest.mark.parametrize("source", [{"name": "hub", "path": "x"}, {"name": "hub", "repo": "solo/two"}])
def test_source_of_a_suspended_adapter_is_not_judged(source: dict[str, str]) -> None:
    assert reason(v.adapter(source=source, suspend=True), v.base()) is None
