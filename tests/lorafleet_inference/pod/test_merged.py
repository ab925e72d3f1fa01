"""`merged_adapters`, asked for by LoRAX's own client and by hand, beside transformers and PEFT."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from support.lorax_client import Call, answers, run
from support.pod import ServedPod, serve
from support.tiny_llama import make_adapter
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from lorafleet_common.keys.guard import hash_of, new_key
from lorafleet_inference.adapters.digest import digest_of
from lorafleet_inference.engine.merging import MajoritySign, MergeMethod, MergePart, merge_of

PROMPT = "one two three"
FREE: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos_token": True}
KEY, NARROW = new_key(), new_key()


@pytest.fixture(scope="module")
def folders(base_folder: Path) -> dict[str, Path]:
    made = {name: base_folder.parent / f"merged-{name}" for name in ("one", "two", "wide", "words")}
    for seed, (name, folder) in enumerate(made.items()):
        make_adapter(base_folder, folder, rank=8 if name == "wide" else 4, seed=seed + 10)
    tokenizer = json.loads((base_folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (made["words"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    return made


@pytest.fixture(scope="module")
def pod(base_folder: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPod]:
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [
        {"name": "all", "hashes": [hash_of(KEY)]},
        {"name": "narrow", "hashes": [hash_of(NARROW)], "models": ["tiny", "one"]},
    ]
    keys.write_text(json.dumps({"keys": entries}))
    options = ("--served-name=tiny", "--max-rank=12", "--max-merged-adapters=3", f"--keys-file={keys}")
    with serve(base_folder, *options, adapters=folders) as served:
        yield served


def merged(*ids: str, weights: Any = None, **fields: Any) -> dict[str, Any]:
    return {"ids": list(ids), "weights": weights or [1.0] * len(ids), **fields}


def generate(pod: ServedPod, asked: Any, key: str = KEY, **parameters: Any) -> httpx.Response:
    body = {"inputs": PROMPT, "parameters": {**FREE, "merged_adapters": asked, **parameters}}
    return httpx.post(
        f"{pod.url}/generate", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60, trust_env=False
    )


def peft_ids(base: Path, folders: dict[str, Path], weights: list[float], method: str, **options: Any) -> list[int]:
    """What transformers and PEFT answer greedily with the merge of `one` and `two`."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model: Any = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folders["one"], "one")
        model.load_adapter(folders["two"], "two")
        model.add_weighted_adapter(["one", "two"], weights, "merged", combination_type=method, **options)
        model.set_adapter("merged")
        ids = list(Tokenizer.from_file(str(base / "tokenizer.json")).encode(PROMPT).ids)
        prompt = len(ids)
        for _ in range(FREE["max_new_tokens"]):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[prompt:]


def test_the_client_gets_what_peft_answers(pod: ServedPod, base_folder: Path, folders: dict[str, Path]) -> None:
    """Whole and streamed, sync and async; the base and the parts answer otherwise."""
    linear = merged("one", "two", weights=[0.6, 0.4], density=0.0)
    ties = merged("one", "two", weights=[1.0, 0.7], density=0.6, merge_strategy="ties", majority_sign_method="total")
    headers = {"Authorization": f"Bearer {KEY}"}
    calls = [
        Call(PROMPT, {"merged_adapters": asked, **FREE}, method, is_async, headers)
        for asked in (linear, ties)
        for method in ("generate", "generate_stream")
        for is_async in (False, True)
    ]
    found = answers(pod.url, *calls)
    for begin, expected in (
        (0, peft_ids(base_folder, folders, [0.6, 0.4], "cat")),
        (4, peft_ids(base_folder, folders, [1.0, 0.7], "ties", density=0.6, majority_sign_method="total")),
    ):
        whole, streams = found[begin : begin + 2], found[begin + 2 : begin + 4]
        for answer in whole:
            assert [token["id"] for token in answer["details"]["tokens"]] == expected
        for events in streams:
            assert [event["token"]["id"] for event in events] == expected
    plain = {generate(pod, None, adapter_id=name).text for name in ("", "one", "two")}
    texts = {json.dumps({"generated_text": one["generated_text"]}) for one in (found[0], found[4])}
    assert len(plain | {json.dumps(json.loads(one)) for one in texts}) == 5


def test_answers_name_the_parts_and_the_identity(pod: ServedPod, folders: dict[str, Path]) -> None:
    answer = generate(pod, merged("two", "one", merge_strategy="dare_ties", density=0.5))
    assert answer.status_code == 200
    parts = [MergePart(name, digest_of(folders[name]), "", 1.0) for name in ("two", "one")]
    made = merge_of(parts, MergeMethod.DARE_TIES, density=0.5, majority_sign=MajoritySign.TOTAL)
    assert answer.headers["x-adapter-id"] == answer.headers["x-lorafleet-adapter"] == "two,one"
    assert made.digest.startswith(f"sha256:{answer.headers['x-lorafleet-revision']}")
    revision = digest_of(folders["two"]).removeprefix("sha256:")[:12]
    same = generate(pod, merged(f"two@{revision}", "one", merge_strategy="dare_ties", density=0.5))
    assert same.headers["x-lorafleet-revision"] == answer.headers["x-lorafleet-revision"]
    assert same.json() == answer.json()


def test_many_merges_leave_nothing_behind(pod: ServedPod) -> None:
    """Metrics have one name for all of them, and three are kept at most."""
    series = 'lorafleet_requests_total{adapter="_merged",base="tiny",finish="length"}'
    before = pod.metric(series)
    for number in range(6):
        assert generate(pod, merged("one", "two", weights=[1.0, 0.1 * number])).status_code == 200
    told = pod.get("/metrics").text
    assert pod.metric(series) == before + 6
    assert pod.metric('lorafleet_merged_adapters{base="tiny"}') == 3
    assert 'adapter="one,' not in told
    tiers = [pod.metric(f'lorafleet_adapters{{base="tiny",tier="{tier}"}}') for tier in ("device", "host", "disk")]
    assert sum(tiers) == 4 + 3
    listed = httpx.get(f"{pod.url}/v1/models", headers={"authorization": f"Bearer {KEY}"}, trust_env=False).json()
    assert {one["id"] for one in listed["data"]} == {"tiny", "one", "two", "wide", "words"}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (merged("one", "two", weights=[1.0]), "weights"),
        (merged("one", "two", merge_strategy="ties"), "density"),
        (merged("one", "two", merge_strategy="average"), "merge_strategy"),
        (merged("one", "two", majority_sign_method="none"), "majority_sign_method"),
        (merged("one", "two", density=1.5), "density"),
        (merged("one", "two", weights=[1.0, 1e9]), "weights"),
        (merged("one", "two", ratio=1), "ratio"),
        ({"ids": [], "weights": []}, "ids"),
        ({"ids": ["one"]}, "weights"),
        (merged(*["one"] * 17), "ids"),
        (merged("one", "tiny"), "only adapters are merged"),
        (merged("one", "wide", "wide"), "add up to 20 at"),
        (merged("one", "wide", merge_strategy="dare_linear", density=0.5), "dare_linear needs equal ranks"),
        (merged("one", "words"), "words has a tokenizer of its own"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(pod: ServedPod, asked: Any, told: str) -> None:
    answer = generate(pod, asked)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation"), answer.text
    assert answer.json()["param"].startswith("parameters.merged_adapters")
    assert told in answer.json()["error"]


def test_other_errors_are_those_of_adapters(pod: ServedPod) -> None:
    both = generate(pod, merged("one", "two"), adapter_id="one")
    assert (both.status_code, both.json()["param"]) == (422, "parameters.merged_adapters")
    unknown = generate(pod, merged("one", "nobody"))
    assert (unknown.status_code, unknown.json()["param"]) == (424, "parameters.merged_adapters.ids")
    assert "nobody" in unknown.json()["error"]
    assert generate(pod, merged("one", "two@000000000000")).status_code == 424
    headers = {"Authorization": f"Bearer {KEY}"}
    asked = {"merged_adapters": merged("one", "nobody", density=0.0), **FREE}
    (told,) = run(pod.url, Call(PROMPT, asked, headers=headers))
    assert told["error"] == "lorax.errors.GenerationError"


def test_a_key_has_to_have_every_part(pod: ServedPod) -> None:
    """Also before it is told whether there is such an adapter."""
    assert generate(pod, merged("one"), NARROW).status_code == 200
    for other in ("two", "nobody"):
        refused = generate(pod, merged("one", other), NARROW)
        assert (refused.status_code, refused.json()["param"]) == (403, "parameters.merged_adapters.ids")
