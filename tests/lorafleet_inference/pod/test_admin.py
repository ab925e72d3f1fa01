"""The admin API as the operator, a person and a script use it, against a pod with three declared sources."""

import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import httpx
import openai
import pytest
from support.admin import Admin, Refused, entry
from support.declared_pod import ADMIN_TOKEN, DeclaredPod
from support.pod import ServedPod
from support.waiting import wait_for

from lorafleet_contract.admin import AdapterState, Owner, PodLoad, Residency, RevisionRef, Tier
from lorafleet_contract.names import revision_of
from lorafleet_inference.adapters.digest import digest_of

ASK = {"prompt": "one two", "max_tokens": 8, "temperature": 0}


def answer(pod: ServedPod, model: str, revision: str | None = None) -> str:
    headers = {} if revision is None else {"x-lorafleet-revision": revision}
    with pod.openai() as client:
        return client.completions.create(model=model, **ASK, extra_headers=headers).choices[0].text


def code_of(pod: ServedPod, model: str, revision: str | None = None) -> tuple[int, str | None]:
    with pytest.raises(openai.APIStatusError) as caught:
        answer(pod, model, revision)
    return caught.value.status_code, caught.value.code


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {ADMIN_TOKEN}", ADMIN_TOKEN, "Bearer"])
def test_nobody_without_the_token(declared: DeclaredPod, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    for path in ("/admin/v1/state", "/admin/v1/adapters/x", "/nothing", "/v1/load_lora_adapter"):
        told = httpx.get(f"{declared.pod.admin_url}{path}", headers=headers, trust_env=False)
        assert told.status_code == 401
        assert told.json()["reason"] == "Unauthorized"


def test_the_state_tells_what_the_pod_can_hold(declared: DeclaredPod) -> None:
    state = declared.admin.state()
    assert state.ready
    assert not state.draining
    assert state.base.served_name == "tiny"
    assert state.budgets.max_resident_adapters == 6
    assert state.budgets.max_rank == 16
    budgets = state.budgets
    assert budgets.rank_page == 1
    assert 6 * 16 <= budgets.total_rank_pages <= 6 * 17, (
        "as operators of 0.1.0 reckon: ranks of adapters on all modules"
    )
    assert budgets.memory_pages is not None
    assert budgets.memory_pages > budgets.total_rank_pages
    assert state.budgets.disk_cache_bytes == 20 << 30


@pytest.mark.parametrize("source", ["volume", "bucket", "hub"])
def test_from_a_reference_to_an_answer(declared: DeclaredPod, source: str) -> None:
    name = f"from-{source}"
    parent = {"volume": declared.volume, "bucket": declared.bucket, "hub": declared.repos}[source]
    folder = declared.adapter(parent, name)
    resolved = declared.admin.resolve(source, f"acme/{name}" if source == "hub" else name)
    assert resolved.digest == digest_of(folder)
    assert {file.path for file in resolved.files} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (resolved.facts.rank, "q_proj" in resolved.facts.target_modules) == (4, True)
    assert (resolved.ref.revision is None) == (source != "hub")
    declared.admin.write(entry(name, resolved))
    seen = declared.admin.wait_for(name, AdapterState.READY)
    assert (seen.tier, seen.owner, seen.reason) == (Tier.DEVICE, Owner.OPERATOR, "")
    assert seen.memory_pages == resolved.facts.memory_pages, "what was told beforehand is what the engine took"
    assert answer(declared.pod, name) != answer(declared.pod, "tiny")
    routes = declared.pod.get("/v1/routes").json()
    assert {"name": name, "revision": revision_of(resolved.digest), "stable": True}.items() <= next(
        one for one in routes["adapters"] if one["name"] == name
    ).items()


def test_names_and_paths_as_people_write_them(declared: DeclaredPod) -> None:
    name, path = "acme/Sql_lora:v2", "epoch=1-step=100 a+b@c"
    pod = declared.pod
    folder = declared.adapter(declared.volume, path)
    declared.adapter(declared.bucket, path)
    told = declared.admin.put(name, "volume", path)
    assert (told.name, told.digest) == (name, digest_of(folder))
    text = answer(pod, name)
    assert text != answer(pod, "tiny")
    assert answer(pod, f"{name}@{told.revision}") == answer(pod, f"{name}@{told.revision}", told.revision) == text
    assert code_of(pod, f"{name}@{told.revision}", "0" * 12) == (400, "invalid_value")
    assert code_of(pod, f"{name}@{'0' * 12}") == (404, "revision_not_found")
    for written in (name, name.replace("/", "%2F")):
        assert pod.get(f"/v1/models/{written}").json()["id"] == name
        found = declared.admin.request("GET", f"/admin/v1/adapters/{written}")
        assert found["revisions"][0]["revision"] == told.revision
    series = 'lorafleet_requests_total{adapter="{adapter}",base="tiny",finish="length"}'
    ends = (series, series.replace("length", "stop"))
    assert sum(pod.metric_of_adapter(end, name) for end in ends) >= 3
    declared.admin.write(entry("acme/From_bucket", declared.admin.resolve("bucket", path)))
    there = declared.admin.wait_for("acme/From_bucket", AdapterState.READY)
    declared.admin.write(removed=[RevisionRef(name=there.name, revision=there.revision)])
    for bad in ("..%2Fup", "a%2F..%2Fb", "a@b", "a%20b"):
        with pytest.raises(Refused) as refused:
            declared.admin.put(bad, "volume", path)
        assert refused.value.status in (400, 404), bad
    declared.admin.request("DELETE", f"/admin/v1/adapters/{name}")
    assert code_of(pod, name) == (404, "model_not_found")


def test_an_adapter_on_demand_is_loaded_by_a_request(declared: DeclaredPod) -> None:
    declared.adapter(declared.volume, "lazy")
    counted = (
        'lorafleet_prompt_tokens_total{adapter="{adapter}",base="tiny"}',
        'lorafleet_generation_tokens_total{adapter="{adapter}",base="tiny"}',
    )

    def tokens() -> float:
        return sum(declared.pod.metric_of_adapter(series, "lazy") for series in counted)

    earlier = tokens()
    resolved = declared.admin.resolve("volume", "lazy")
    declared.admin.write(entry("lazy", resolved, residency=Residency.ON_DEMAND))
    assert declared.admin.wait_for("lazy", AdapterState.READY).tier is Tier.DISK
    before = declared.admin.wait_for("lazy", AdapterState.READY).num_tokens
    assert answer(declared.pod, "lazy")
    seen = declared.admin.wait("lazy on the device", lambda state: any(
        one.name == "lazy" and one.tier is Tier.DEVICE for one in state.adapters
    ))  # fmt: skip
    lazy = next(one for one in seen.adapters if one.name == "lazy")
    assert lazy.last_used is not None
    assert before == 0
    assert lazy.num_tokens == tokens() - earlier > 0


def test_a_new_revision_beside_the_old_one_and_the_name_moves(declared: DeclaredPod) -> None:
    revisions = []
    for number in (1, 2):
        declared.adapter(declared.volume, "rolling")
        resolved = declared.admin.resolve("volume", "rolling")
        revisions.append(resolved)
        declared.admin.write(entry("rolling", resolved, stable=number == 1))
        declared.admin.wait_for("rolling", AdapterState.READY, revision_of(resolved.digest))
    old, new = (revision_of(one.digest) for one in revisions)
    assert answer(declared.pod, "rolling") == answer(declared.pod, "rolling", old)
    assert answer(declared.pod, "rolling", new) != answer(declared.pod, "rolling", old)
    declared.admin.write(entry("rolling", revisions[1]))
    assert answer(declared.pod, "rolling") == answer(declared.pod, "rolling", new)
    declared.admin.write(removed=[RevisionRef(name="rolling", revision=old)])
    declared.admin.wait("the old one is gone", lambda state: old not in {one.revision for one in state.adapters})
    assert code_of(declared.pod, "rolling", old) == (404, "revision_not_found")


def test_a_name_without_a_stable_revision_is_on_its_way(declared: DeclaredPod) -> None:
    declared.adapter(declared.volume, "unborn")
    declared.admin.write(entry("unborn", declared.admin.resolve("volume", "unborn"), stable=False))
    assert code_of(declared.pod, "unborn") == (503, "adapter_loading")


def test_absence_changes_nothing_and_stale_writes_are_refused(declared: DeclaredPod) -> None:
    declared.adapter(declared.volume, "kept")
    declared.admin.write(entry("kept", declared.admin.resolve("volume", "kept")))
    declared.admin.wait_for("kept", AdapterState.READY)
    declared.admin.write()
    assert declared.admin.adapter("kept") is not None
    with pytest.raises(Refused) as caught:
        declared.admin.write(fence=0, removed=[])
    assert (caught.value.status, caught.value.reason, caught.value.retryable) == (409, "StaleFence", False)


def test_a_long_poll_ends_with_a_change_and_not_before(declared: DeclaredPod) -> None:
    declared.adapter(declared.volume, "polled")
    resolved = declared.admin.resolve("volume", "polled")
    generation = declared.admin.wait("quiet", lambda _: True).generation
    assert declared.admin.state(after=generation, wait_seconds=0.3).generation >= generation
    for path, headers in (("/admin/v1/state", {"authorization": f"Bearer {ADMIN_TOKEN}"}), ("/v1/routes", {})):
        url = declared.pod.admin_url if path.startswith("/admin") else declared.pod.url
        generation = declared.admin.state().generation
        query = {"after": generation, "wait_seconds": 20}
        began = time.monotonic()
        with ThreadPoolExecutor(1) as other:
            told = other.submit(httpx.get, url + path, params=query, headers=headers, timeout=30, trust_env=False)
            declared.admin.write(entry("polled", resolved, pinned=path == "/v1/routes"))
            assert told.result().json()["generation"] > generation
        assert time.monotonic() - began < 20, "a change ends the poll"
    unknown = declared.admin.state(after=10**6, wait_seconds=20)
    assert unknown.generation < 10**6, "a number of another boot is answered at once"


def test_the_load_counts_requests_since_the_start(declared: DeclaredPod) -> None:
    def load() -> PodLoad:
        return PodLoad.model_validate(declared.admin.request("GET", "/admin/v1/load"))

    before = load()
    code_of(declared.pod, "nobody-knows")
    answer(declared.pod, "tiny")
    after = load()
    assert after.boot_id == before.boot_id == declared.admin.state().boot_id
    assert after.num_requests - before.num_requests == 2
    wait_for("nothing runs", lambda: load().num_sequences == 0)


def test_a_poll_of_what_is_known_is_answered_without_the_document(declared: DeclaredPod) -> None:
    """Operators poll every pod every few seconds; one of another boot, or without a boot's id, gets the whole."""
    known = declared.admin.wait("quiet", lambda _: True)

    def status(**query: object) -> int:
        headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
        url = f"{declared.pod.admin_url}/admin/v1/state"
        return httpx.get(url, params=query, headers=headers, timeout=30, trust_env=False).status_code  # type: ignore[arg-type]

    for _ in range(20):  # what earlier tests left may still move
        generation = declared.admin.state().generation
        found = status(after=generation, boot_id=known.boot_id, wait_seconds=0.1)
        if found == HTTPStatus.NOT_MODIFIED:
            break
    assert found == HTTPStatus.NOT_MODIFIED
    assert status(after=generation, boot_id="of the process before") == 200
    assert status(after=generation - 1, boot_id=known.boot_id) == 200
    assert status(after=generation) == 200


def test_a_person_puts_replaces_and_removes(declared: DeclaredPod) -> None:
    declared.adapter(declared.bucket, "mine")
    first = declared.admin.put("mine", "bucket", "mine", pinned=True)
    assert (first.state, first.owner, first.pinned, first.tier) == (AdapterState.READY, Owner.LOCAL, True, Tier.DEVICE)
    before = answer(declared.pod, "mine")
    declared.adapter(declared.bucket, "mine")
    second = declared.admin.put("mine", "bucket", "mine")
    assert second.revision != first.revision
    assert answer(declared.pod, "mine") != before
    shown = declared.admin.request("GET", "/admin/v1/adapters/mine")
    assert second.revision in {one["revision"] for one in shown["revisions"]}
    declared.admin.request("DELETE", "/admin/v1/adapters/mine")
    assert code_of(declared.pod, "mine") == (404, "model_not_found")
    for method in ("GET", "DELETE"):
        with pytest.raises(Refused) as caught:
            declared.admin.request(method, "/admin/v1/adapters/mine")
        assert (caught.value.status, caught.value.reason) == (404, "NotFound")


def test_what_fails_to_replace_leaves_what_answers(declared: DeclaredPod) -> None:
    folder = declared.adapter(declared.volume, "steady")
    first = declared.admin.put("steady", "volume", "steady")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(Refused) as caught:
        declared.admin.put("steady", "volume", "steady")
    assert (caught.value.status, caught.value.reason) == (422, "ArtifactInvalid")
    seen = declared.admin.adapter("steady")
    assert seen is not None
    assert (seen.revision, seen.state) == (first.revision, AdapterState.READY)
    assert answer(declared.pod, "steady")


def test_owners_leave_each_other_alone(declared: DeclaredPod) -> None:
    declared.adapter(declared.volume, "owned")
    resolved = declared.admin.resolve("volume", "owned")
    declared.admin.put("of-a-person", "volume", "owned")
    declared.admin.write(entry("of-the-operator", resolved), entry("of-a-person", resolved))
    seen = declared.admin.adapter("of-a-person")
    assert seen is not None
    assert seen.owner is Owner.LOCAL
    declared.admin.write(removed=[RevisionRef(name="of-a-person", revision=seen.revision)])
    assert declared.admin.adapter("of-a-person") is not None
    made_of = {
        name: declared.admin.request("GET", f"/admin/v1/adapters/{name}")["sources"]
        for name in ("of-a-person", "of-the-operator")
    }
    assert made_of == {"of-a-person": [], "of-the-operator": [resolved.model_dump(mode="json", by_alias=True)]}
    for method, body in (("PUT", {"source": {"name": "volume", "path": "owned"}}), ("DELETE", None)):
        with pytest.raises(Refused) as caught:
            declared.admin.request(method, "/admin/v1/adapters/of-the-operator", body)
        assert (caught.value.status, caught.value.reason) == (409, "NotOwned")
    declared.admin.request("DELETE", "/admin/v1/adapters/of-a-person")


def test_the_bases_name_is_taken(declared: DeclaredPod) -> None:
    declared.adapter(declared.volume, "rival")
    with pytest.raises(Refused) as caught:
        declared.admin.put("tiny", "volume", "rival")
    assert caught.value.reason == "NameConflict"
    declared.admin.write(entry("tiny", declared.admin.resolve("volume", "rival")))
    assert declared.admin.wait_for("tiny", AdapterState.FAILED).reason == "NameConflict"
    assert answer(declared.pod, "tiny")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "named"),
    [
        ("PUT", "/admin/v1/adapters", {"fence": -1, "generation": 1}, 400, "fence"),
        ("PUT", "/admin/v1/adapters/Bad@Name", {"source": {"name": "volume", "path": "x"}}, 400, "name"),
        ("PUT", "/admin/v1/adapters/x", {"source": {"name": "volume", "path": "../x"}}, 400, "source"),
        ("PUT", "/admin/v1/adapters/x", {"source": {"name": "volume", "path": "a/../../x"}}, 400, "source"),
        ("POST", "/admin/v1/resolve", {"source": {"name": "volume", "path": "x", "repo": "a/b"}}, 400, "source"),
        ("POST", "/admin/v1/resolve", None, 400, "required"),
        ("GET", "/admin/v1/state?after=x", None, 400, "after"),
        ("GET", "/admin/v1/state?wait_seconds=1e9", None, 400, "wait_seconds"),
        ("POST", "/admin/v1/state", None, 405, "/admin/v1/state"),
        ("GET", "/admin/v2/state", None, 404, "/admin/v2/state"),
    ],
)
def test_bad_requests_are_admin_errors(
    *, declared: DeclaredPod, method: str, path: str, body: object, status: int, named: str
) -> None:
    with pytest.raises(Refused, match=named) as caught:
        declared.admin.request(method, path, body)
    assert caught.value.status == status


def test_the_routes_of_vllm(declared: DeclaredPod) -> None:
    http = declared.admin.http
    path = declared.adapter(declared.volume, "scripted")
    body = {"lora_name": "scripted", "lora_path": str(path)}
    assert http.post("/v1/load_lora_adapter", json=body).text == "Success: LoRA adapter 'scripted' added successfully."
    assert answer(declared.pod, "scripted")
    again = http.post("/v1/load_lora_adapter", json=body)
    assert (again.status_code, "already been loaded" in again.json()["error"]["message"]) == (400, True)
    declared.adapter(declared.volume, "scripted")
    assert http.post("/v1/load_lora_adapter", json={**body, "load_inplace": True}).status_code == 200
    lost = http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(path.parent / "nowhere")})
    assert lost.status_code == 404
    outside = http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(declared.original)})
    assert (outside.status_code, "SourceNotAllowed" in outside.json()["error"]["message"]) == (400, True)
    assert http.post("/v1/load_lora_adapter", json={"lora_name": "x"}).status_code == 400
    gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "scripted"})
    assert gone.text == "Success: LoRA adapter 'scripted' removed successfully."
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "scripted"}).status_code == 404
    assert code_of(declared.pod, "scripted") == (404, "model_not_found")


def test_the_routes_of_vllm_are_off_by_default(pod: ServedPod) -> None:
    admin = Admin(pod.admin_url)
    with admin.http, pytest.raises(Refused) as caught:
        admin.request("POST", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "y"})
    assert caught.value.status == 404
