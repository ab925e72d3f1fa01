"""Adapters that nobody declared, asked for by LoRAX's own client where the pod allows it."""

from typing import Any

import httpx
from support.declared_pod import HUB_TOKEN, DeclaredPod
from support.lorax_client import Call, answers, run
from support.pod import ServedPod

PROMPT = "one two three"
FREE: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos_token": True}


def generate(pod: ServedPod, **parameters: Any) -> httpx.Response:
    body = {"inputs": PROMPT, "parameters": {**FREE, **parameters}}
    return httpx.post(f"{pod.url}/generate", json=body, timeout=60, trust_env=False)


def test_the_client_names_adapters_in_each_kind_of_source(declared: DeclaredPod) -> None:
    pod = declared.pod
    folders = {
        "hub": declared.adapter(declared.repos, "adhoc"),
        "s3": declared.adapter(declared.bucket, "adhoc"),
        "local": declared.adapter(declared.volume, "adhoc"),
    }
    assert set(folders) == {"hub", "s3", "local"}
    wishes: list[dict[str, Any]] = [
        {"adapter_id": "acme/adhoc", "adapter_source": "hub"},
        {"adapter_id": "s3://models/team/adhoc", "adapter_source": "s3"},
        {"adapter_id": "adhoc", "adapter_source": "local"},
        {"adapter_id": "acme/adhoc", "adapter_source": "hub", "api_token": HUB_TOKEN},
    ]
    calls = [Call(PROMPT, {**wish, **FREE}) for wish in wishes]
    calls += [Call(PROMPT, {**wish, **FREE}, "generate_stream", is_async=True) for wish in wishes]
    found = answers(pod.url, *calls)
    whole, streams = [one["generated_text"] for one in found[:4]], [one[-1]["generated_text"] for one in found[4:]]
    assert whole == streams
    assert whole[3] == whole[0]
    base = generate(pod).json()["generated_text"]
    assert len({base, *whole}) == 4
    answer = generate(pod, **wishes[0])
    assert answer.headers["x-adapter-id"] == "acme/adhoc"
    assert answer.headers["x-lorafleet-revision"] == generate(pod, **wishes[3]).headers["x-lorafleet-revision"]
    assert "acme/adhoc" not in pod.get("/metrics").text
    assert "acme/adhoc" not in pod.get("/v1/routes").text
    assert "acme/adhoc" not in pod.get("/v1/models").text
    assert pod.metric_of_adapter('lorafleet_requests_total{adapter="{adapter}",base="tiny",finish="length"}', "_ad_hoc")


def test_embeddings_name_adapters_likewise(declared: DeclaredPod) -> None:
    pod = declared.pod
    declared.adapter(declared.repos, "vectors")
    wish = {"adapter_id": "acme/vectors", "adapter_source": "hub"}

    def embed(**parameters: Any) -> httpx.Response:
        return httpx.post(
            f"{pod.url}/embed", json={"inputs": PROMPT, "parameters": parameters}, timeout=60, trust_env=False
        )

    base, adapter = embed(), embed(**wish)
    assert (base.status_code, adapter.status_code) == (200, 200), adapter.text
    assert adapter.headers["x-lorafleet-revision"]
    assert adapter.json()["embeddings"] != base.json()["embeddings"]
    assert embed(**wish, api_token=HUB_TOKEN).json() == adapter.json()
    told = [
        (embed(**wish, api_token="wrong-token"), 424, "parameters.adapter_id"),
        (embed(adapter_id="acme/nothing-here", adapter_source="hub"), 424, "parameters.adapter_id"),
        (embed(adapter_id="tiny", adapter_source="hub", api_token="wrong-token"), 422, "parameters.api_token"),
        (embed(adapter_id="tiny", api_token="wrong-token"), 422, "parameters.api_token"),
    ]
    for answer, status, param in told:
        assert (answer.status_code, answer.json()["param"]) == (status, param), answer.text
        assert "wrong-token" not in answer.text


def test_what_cannot_be_had_is_an_error_of_the_adapter(declared: DeclaredPod) -> None:
    pod = declared.pod
    declared.adapter(declared.repos, "private")
    assert generate(pod, adapter_id="acme/private", adapter_source="hub").status_code == 200
    given: list[tuple[dict[str, Any], str]] = [
        ({"adapter_id": "acme/private", "adapter_source": "hub", "api_token": "wrong-token"}, "GenerationError"),
        ({"adapter_id": "acme/nothing", "adapter_source": "hub"}, "GenerationError"),
        ({"adapter_id": "/etc", "adapter_source": "local"}, "GenerationError"),
        ({"adapter_id": "acme/private", "adapter_source": "s3"}, "GenerationError"),
        ({"adapter_id": "acme/private"}, "GenerationError"),
        ({"adapter_id": "adhoc", "adapter_source": "local", "api_token": "wrong-token"}, "ValidationError"),
        ({"adapter_id": "acme/private", "api_token": "wrong-token"}, "ValidationError"),
        ({"adapter_id": "tiny", "adapter_source": "hub", "api_token": "wrong-token"}, "ValidationError"),
    ]
    for outcome, (fields, name) in zip(
        run(pod.url, *[Call(PROMPT, {**fields, **FREE}) for fields, _ in given]), given, strict=True
    ):
        assert outcome.get("error") == f"lorax.errors.{name}", (fields, outcome)
        assert "wrong-token" not in outcome["message"]
    assert "wrong-token" not in pod.logs
    assert HUB_TOKEN not in pod.logs
    pinned = httpx.post(
        f"{pod.url}/generate",
        json={"inputs": PROMPT, "parameters": {"adapter_id": "acme/private", "adapter_source": "hub"}},
        headers={"x-lorafleet-revision": "0" * 12},
        timeout=60,
        trust_env=False,
    )
    assert (pinned.status_code, pinned.json()["param"]) == (422, "parameters.adapter_id")
