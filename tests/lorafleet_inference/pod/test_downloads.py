"""A pod whose base comes from a hub says how far the download is, and so does one that waits for it."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from safetensors.numpy import load_file, save_file
from support.cpu_kernels import compiled
from support.pod import ServedPod, start, wait_listening
from support.servers import ServedHub, serve_hub
from support.waiting import wait_for

NUM_SHARDS = 3
DOWNLOADED = 'lorafleet_base_download_seconds{base="tiny"}'


@pytest.fixture
def hub(base_folder: Path, tmp_path: Path) -> Iterator[ServedHub]:
    """It has the base in some files of weights."""
    folder = Path(shutil.copytree(base_folder, tmp_path / "hub" / "tiny"))
    weights = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    where = {}
    for number in range(NUM_SHARDS):
        name = f"model-{number + 1:05}-of-{NUM_SHARDS:05}.safetensors"
        part = dict(weights[number::NUM_SHARDS])
        save_file(part, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    with serve_hub(tmp_path / "hub") as served:
        yield served


@contextmanager
def starting(hub: ServedHub, cache: Path, name: str) -> Iterator[ServedPod]:
    own = ["--model=acme/tiny", "--served-name=tiny", f"--pod-name={name}", f"--cache-dir={cache}"]
    small = ["--kv-cache-memory=64Mi", "--host-cache=256Mi", "--num-threads=1", "--drain-grace-seconds=0"]
    ports = ["--host=127.0.0.1", "--port=0", "--admin-port=0"]
    with start(*own, *small, *ports, env={"HF_ENDPOINT": hub.url}) as pod:
        wait_listening(pod)
        yield pod


def percent(pod: ServedPod) -> int:
    """As the admin port says it; less than nothing before it does."""
    told = httpx.get(f"{pod.admin_url}/admin/v1/state", timeout=60, trust_env=False)
    if told.status_code != 503 or (how_far := told.json()["start"]) is None or how_far["step"] != "Downloading":
        return -1
    found: int = how_far["percent"]
    return found


def grown(told: Callable[[], list[int]], before: list[int]) -> bool:
    return all(now > then for now, then in zip(told(), before, strict=True))


def test_downloading_is_told_until_the_base_is_here(hub: ServedHub, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels").symlink_to(compiled())
    permits = threading.Semaphore(0)
    hub.trouble.pace = lambda _: permits.acquire()
    try:
        with starting(hub, tmp_path / "cache", "first") as pod, starting(hub, tmp_path / "cache", "second") as other:

            def told() -> list[int]:
                return [percent(pod), percent(other)]

            wait_for("begun", lambda: min(told()) >= 0)
            assert pod.get("/health").status_code == 200
            refused = httpx.post(f"{pod.url}/v1/completions", json={"model": "tiny", "prompt": "x"}, trust_env=False)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            before = told()
            for _ in range(NUM_SHARDS - 1):
                permits.release()
                wait_for("it grows", partial(grown, told, before))
                before = told()
            assert f"Downloading {before[0]} %" in pod.get("/ready").json()["reason"]
            other.terminate()
            assert other.wait_ended() == 0
            assert "Traceback" not in other.logs
            permits.release(NUM_SHARDS)
            pod.wait_for("/ready", 200)
            assert pod.metric(DOWNLOADED) > 0
    finally:
        permits.release(NUM_SHARDS * 2)
