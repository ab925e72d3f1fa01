"""Everything that can be wrong with an adapter or its source ends as a reason for that adapter alone."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from hubserver.repositories import Repositories
from safetensors.numpy import load_file, save_file
from support.admin import Refused, entry
from support.declared_pod import HUB_TOKEN, DeclaredPod
from support.servers import SECRET_KEY
from support.waiting import wait_for

from lorafleet_contract.admin import AdapterState, RevisionRef, Tier
from lorafleet_contract.names import revision_of
from lorafleet_contract.sources import ResolvedSource, SourceRef
from lorafleet_inference.adapters.digest import digest_of_files, hash_file

NAMES = ("adapter_config.json", "adapter_model.safetensors")
ASK: dict[str, Any] = {"prompt": "one two three", "max_tokens": 24, "temperature": 0}


def config(folder: Path, **changes: Any) -> None:
    path = folder / NAMES[0]
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tensors(folder: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    found = load_file(folder / NAMES[1])
    save_file({name: change(name, tensor) for name, tensor in found.items()}, folder / NAMES[1])


def corrupt(folder: Path) -> None:
    data = bytearray((folder / NAMES[1]).read_bytes())
    data[8:40] = b"\xff" * 32
    (folder / NAMES[1]).write_bytes(bytes(data))


def absurd_header(folder: Path) -> None:
    (folder / NAMES[1]).write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def truncate(folder: Path) -> None:
    (folder / NAMES[1]).write_bytes((folder / NAMES[1]).read_bytes()[:-100])


def other_base(folder: Path) -> None:
    tensors(folder, lambda name, one: one[:, :-1].copy() if "lora_A" in name else one)


def high_rank(folder: Path) -> None:
    config(folder, r=32)
    tensors(folder, lambda name, one: np.repeat(one, 8, axis=0 if "lora_A" in name else 1))


def pickle(folder: Path) -> None:
    (folder / NAMES[1]).unlink()
    (folder / "adapter_model.bin").write_bytes(b"cposix\nsystem\n(S'touch /tmp/lorafleet-was-here'\ntR.")


def escape(folder: Path) -> None:
    (folder / NAMES[1]).unlink()
    (folder / NAMES[1]).symlink_to("/etc/passwd")


def missing(folder: Path) -> None:
    (folder / NAMES[0]).unlink()


BROKEN = [
    (corrupt, "ArtifactInvalid", "header"),
    (absurd_header, "ArtifactInvalid", "at most"),
    (truncate, "ArtifactInvalid", "truncated"),
    (other_base, "BaseModelMismatch", "lora_A"),
    (high_rank, "RankTooHigh", "up to 16"),
    (pickle, "UnsafeFormat", "adapter_model.bin"),
    (escape, "SourceNotAllowed", "leads out"),
    (missing, "ArtifactNotFound", "adapter_config.json"),
    (lambda folder: config(folder, use_qalora=True), "UnsupportedAdapter", "use_qalora"),
    (lambda folder: config(folder, peft_type="IA3"), "UnsupportedAdapter", "IA3"),
    (lambda folder: config(folder, dora_of_the_future=True), "UnsupportedAdapter", "dora_of_the_future"),
    (lambda folder: config(folder, target_modules="("), "ArtifactInvalid", "target_modules"),
]


@pytest.fixture(scope="module")
def alone(declared: DeclaredPod) -> dict[str, str]:
    """What base and two adapters answer when nothing is wrong."""
    for name in ("calm", "quiet"):
        declared.adapter(declared.volume, name)
        declared.admin.put(name, "volume", name, pinned=True)
    with declared.pod.openai() as client:
        return {
            name: client.completions.create(model=name, **ASK).choices[0].text for name in ("tiny", "calm", "quiet")
        }


@pytest.fixture
def beside(declared: DeclaredPod, alone: dict[str, str]) -> Iterator[None]:
    """A mixed batch runs during the test and answers as it does without it."""
    with declared.pod.openai() as client, ThreadPoolExecutor(6) as pool:

        def ask(name: str) -> str:
            return client.completions.create(model=name, **ASK).choices[0].text

        asked = [(name, pool.submit(ask, name)) for name in (*alone, *alone)]
        yield
        assert [(name, told.result()) for name, told in asked] == [(name, alone[name]) for name, _ in asked]


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize(("spoil", "reason", "named"), BROKEN, ids=[f"{case[1]}-{case[2]}" for case in BROKEN])
def test_what_is_wrong_with_an_artifact(
    declared: DeclaredPod, spoil: Callable[[Path], None], reason: str, named: str
) -> None:
    name = f"broken-{BROKEN.index(next(case for case in BROKEN if case[0] is spoil))}"
    spoil(declared.adapter(declared.volume, name))
    with pytest.raises(Refused, match=named) as caught:
        declared.admin.resolve("volume", name)
    assert (caught.value.reason, caught.value.retryable) == (reason, False)
    with pytest.raises(Refused) as again:
        declared.admin.put(name, "volume", name)
    assert again.value.reason == reason
    assert declared.admin.adapter(name) is None
    assert not Path("/tmp/lorafleet-was-here").exists()


@pytest.mark.usefixtures("beside")
def test_what_is_wrong_with_a_source(declared: DeclaredPod) -> None:
    declared.adapter(declared.repos, "red")
    declared.adapter(declared.bucket, "red")
    hub = declared.hub.trouble
    cases = [
        ("elsewhere", "red", {}, 403, "SourceNotAllowed"),
        ("hub", "open/red", {}, 403, "SourceNotAllowed"),
        ("hub", "acme/none", {}, 422, "ArtifactNotFound"),
        ("volume", "none", {}, 422, "ArtifactNotFound"),
        ("bucket", "none", {}, 422, "ArtifactNotFound"),
        ("locked", "red", {}, 422, "Unauthorized"),
        ("bucket", "red", {"expectedDigest": f"sha256:{'0' * 64}"}, 422, "DigestMismatch"),
    ]
    for source, place, more, status, reason in cases:
        with pytest.raises(Refused) as caught:
            declared.admin.resolve(source, place, **more)
        assert (caught.value.status, caught.value.reason) == (status, reason), (source, place)
    for http_status, reason in ((401, "Unauthorized"), (404, "ArtifactNotFound")):
        hub.status, hub.times = http_status, 1
        with pytest.raises(Refused) as caught:
            declared.admin.resolve("hub", "acme/red")
        assert caught.value.reason == reason
    hub.status, hub.times = 503, 2
    assert declared.admin.resolve("hub", "acme/red"), "what passes is waited for"
    hub.status = 0
    for secret in (HUB_TOKEN, SECRET_KEY, "not-the-key"):
        assert secret not in declared.pod.logs
        assert secret not in declared.admin.state().model_dump_json()


def pinned_by_hand(declared: DeclaredPod, name: str) -> ResolvedSource:
    """What another pod would have resolved: this one has not seen it yet."""
    folder = declared.adapter(declared.repos, name)
    facts = declared.admin.resolve("volume", "calm").facts
    files = [hash_file(folder, file) for file in NAMES]
    commit = Repositories(declared.repos, "acme").commit(f"acme/{name}", "main")
    assert commit is not None
    ref = SourceRef(name="hub", repo=f"acme/{name}", revision=commit.sha)
    return ResolvedSource(ref=ref, digest=digest_of_files(files), files=files, facts=facts)


@pytest.mark.usefixtures("beside")
def test_a_source_that_comes_back_heals_its_adapter_alone(declared: DeclaredPod) -> None:
    resolved = pinned_by_hand(declared, "healing")
    declared.hub.trouble.status, declared.hub.trouble.times = 503, 10**6
    declared.admin.write(entry("healing", resolved))
    seen = declared.admin.wait_for("healing", AdapterState.FAILED)
    assert (seen.reason, seen.tier) == ("SourceUnavailable", Tier.SOURCE)
    with declared.pod.openai() as client:
        with pytest.raises(openai.APIStatusError, match="SourceUnavailable") as caught:
            client.completions.create(model="healing", **ASK)
        assert (caught.value.status_code, caught.value.code) == (503, "adapter_loading")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        declared.hub.trouble.status = declared.hub.trouble.times = 0
        declared.admin.wait_for("healing", AdapterState.READY)
        assert client.completions.create(model="healing", **ASK).choices[0].text


@pytest.mark.usefixtures("beside")
def test_an_entry_that_cannot_be_stands_with_its_reason(declared: DeclaredPod) -> None:
    resolved = pinned_by_hand(declared, "forged")
    files = [file.model_copy(update={"sha256": "0" * 64}) for file in resolved.files]
    forged = resolved.model_copy(update={"files": files, "digest": digest_of_files(files)})
    declared.admin.write(entry("forged", forged))
    seen = declared.admin.wait_for("forged", AdapterState.FAILED)
    assert (seen.reason, "has changed" in seen.message) == ("DigestMismatch", True)
    with declared.pod.openai() as client, pytest.raises(openai.APIStatusError, match="DigestMismatch") as caught:
        client.completions.create(model="forged", **ASK)
    assert (caught.value.status_code, caught.value.code) == (424, "adapter_failed")
    assert "forged" not in {one["name"] for one in declared.pod.get("/v1/routes").json()["adapters"]}
    declared.admin.write(removed=[RevisionRef(name="forged", revision=revision_of(forged.digest))])
    declared.admin.wait("forged is gone", lambda state: "forged" not in {one.name for one in state.adapters})


@pytest.mark.usefixtures("beside")
def test_requests_that_fail_leave_no_lease_behind(declared: DeclaredPod) -> None:
    with declared.pod.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="calm", prompt="one " * 1000, max_tokens=1)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="calm", prompt="one", max_tokens=1, temperature=-1)
        stream = client.completions.create(model="calm", stream=True, prompt="x", max_tokens=200)
        next(iter(stream))
        stream.close()
        failing = {"model": "quiet", "prompt": "x", "max_tokens": 200, "timeout": 0.05}
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(**failing)

    def idle() -> bool:
        found = {one.name: one.num_in_flight for one in declared.admin.state().adapters}
        return found["calm"] <= 2 and found["quiet"] <= 2

    wait_for("only the batch beside is in flight", idle)
