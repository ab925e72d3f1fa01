"""Base models of a hub in a folder that several processes share, with a real hub and real processes."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import cache_filler
from support.pod import SOURCES
from support.servers import ServedHub, serve_hub
from support.waiting import wait_for

from lorafleet_common.errors import ConfigError
from lorafleet_inference.model_cache import ModelCache
from lorafleet_inference.model_hub import HubModel

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": b"1" * 300_000,
    "model-00002-of-00002.safetensors": b"2" * 500_000,
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "original/consolidated.safetensors": b"a second copy",
}
WANTED = {name for name in FILES if name not in ("pytorch_model.bin", "original/consolidated.safetensors")}
WEIGHTS = sorted(name for name in WANTED if name.endswith(".safetensors"))
SECOND = "model-00002-of-00002.safetensors"


may_mount = pytest.mark.skipif(
    subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True, check=False).returncode != 0,
    reason="mounting in a namespace of one's own is forbidden here",
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ServedHub]:
    for name, content in FILES.items():
        path = tmp_path / "hub" / "llama" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with serve_hub(tmp_path / "hub") as served:
        yield served


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def get(hub: ServedHub, root: Path, revision: str | None, *, weights: bool = True) -> Path:
    cache = ModelCache(root, patience=cache_filler.PATIENCE)
    return cache.get(HubModel("acme/llama", revision, endpoint=hub.url), weights=weights)


def commit_of(hub: ServedHub) -> str:
    from huggingface_hub import HfApi

    commit = HfApi(endpoint=hub.url).model_info("acme/llama").sha
    assert commit is not None
    hub.trouble.requests.clear()
    return commit


def given(hub: ServedHub) -> list[str]:
    """The weights that were asked for."""
    return [
        line.split("/")[-1].strip()
        for line in hub.trouble.requests
        if line.startswith("GET") and ".safetensors " in f"{line} "
    ]


def is_whole(folder: Path) -> bool:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == WANTED
    return all((folder / name).read_bytes() == FILES[name] for name in WANTED)


@contextmanager
def filler(
    hub: ServedHub, root: Path, holder: str, *revisions: str, before: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A process that wants the model; `before`: a shell command in a mount namespace of its own."""
    path = os.pathsep.join([*map(str, SOURCES), str(Path(cache_filler.__file__).parents[1])])
    command = [sys.executable, cache_filler.__file__, str(root), "acme/llama", holder, *revisions]
    if before:
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path, "HF_ENDPOINT": hub.url, "HF_HOME": str(root.parent / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_start_asks_the_hub_for_nothing(hub: ServedHub, root: Path) -> None:
    commit = commit_of(hub)
    folder = get(hub, root, commit)
    assert is_whole(folder)
    assert sorted(given(hub)) == WEIGHTS
    hub.trouble.requests.clear()
    assert get(hub, root, commit) == folder
    assert hub.trouble.requests == []
    assert {entry.name for entry in folder.parent.iterdir()} == {commit}


def test_a_branch_costs_one_question_and_a_hub_that_is_away_none(
    hub: ServedHub, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = get(hub, root, None)
    hub.trouble.requests.clear()
    assert get(hub, root, "main") == folder
    assert hub.trouble.requests == ["GET /api/models/acme/llama/revision/main"]
    hub.trouble.status, hub.trouble.times = 503, 100
    with caplog.at_level(logging.WARNING):
        assert get(hub, root, "main") == folder
    assert f"taking what it was, {folder.name}" in caplog.text
    with pytest.raises(ConfigError, match="the hub did not give it"):
        get(hub, root, "other")
    hub.trouble.status = 404
    with pytest.raises(ConfigError, match="the hub did not give it"):
        get(hub, root, "main")


def test_texts_alone_are_kept_apart(hub: ServedHub, root: Path) -> None:
    """What checks an adapter wants no weights, and a pod that comes later does."""
    commit = commit_of(hub)
    texts = get(hub, root, commit, weights=False)
    assert {path.name for path in texts.iterdir()} == {"config.json", "model.safetensors.index.json"}
    whole = get(hub, root, commit)
    assert is_whole(whole)
    assert get(hub, root, commit, weights=False) == whole


def test_a_file_that_breaks_off_is_gone_on_with(hub: ServedHub, root: Path) -> None:
    hub.trouble.cut_after_bytes, hub.trouble.times = 1000, 1
    assert is_whole(get(hub, root, None))
    assert len(given(hub)) == len(WEIGHTS) + 1


def test_of_two_pods_one_downloads_and_the_other_waits_and_says_so(hub: ServedHub, root: Path) -> None:
    commit, hub.trouble.halfway = commit_of(hub), threading.Event()
    with filler(hub, root, "pod-a", commit) as first, filler(hub, root, "pod-b", commit) as second:
        lines: list[str] = []
        for process in (first, second):
            threading.Thread(target=lambda p=process: lines.extend(p.stderr), daemon=True).start()
        wait_for(
            "one waits, and knows how far it is",
            lambda: any("waiting for pod-" in line and " of 0.8 MB" in line for line in lines),
        )
        assert any("getting acme/llama@" in line and "from the hub: 0." in line for line in lines)
        hub.trouble.halfway.set()
        folders = {process.stdout.read().strip() for process in (first, second) if process.stdout}
        assert [process.wait(60) for process in (first, second)] == [0, 0]
    assert folders == {str(root / "acme--llama" / commit)}
    assert is_whole(root / "acme--llama" / commit)
    assert sorted(given(hub)) == WEIGHTS
    assert {entry.name for entry in (root / "acme--llama").iterdir()} == {commit}


def test_what_a_killed_download_had_whole_is_kept_and_the_rest_cleaned(hub: ServedHub, root: Path) -> None:
    commit, hub.trouble.halfway = commit_of(hub), threading.Event()
    partial = root / "acme--llama" / f"{commit}.partial"
    with filler(hub, root, "pod-a", commit) as first:
        wait_for("two on their way", lambda: len(given(hub)) == len(list(partial.rglob("*.incomplete"))) == 2)
        hub.trouble.halfway.set()
        hub.trouble.halfway = threading.Event()
        first.kill()
        first.wait()
    # as a file is that had come whole before
    (partial / SECOND).write_bytes(FILES[SECOND])
    assert list(partial.rglob("*.incomplete"))
    hub.trouble.halfway = None
    hub.trouble.requests.clear()
    with filler(hub, root, "pod-b", commit) as second:
        told, said = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert "waiting for pod-a" in said
    assert "pod-a has not been heard" in said
    assert is_whole(Path(told.strip()))
    assert SECOND not in given(hub)
    assert {entry.name for entry in (root / "acme--llama").iterdir()} == {commit}


def test_how_far_it_is_is_told_to_who_downloads_and_to_who_waits(hub: ServedHub, root: Path) -> None:
    commit, permits = commit_of(hub), threading.Semaphore(0)
    hub.trouble.pace = lambda _: permits.acquire()
    told: dict[str, list[int]] = {"pod-a": [], "pod-b": []}

    def bring(holder: str) -> Path:
        cache = ModelCache(root, holder=holder, patience=cache_filler.PATIENCE)
        return cache.get(HubModel("acme/llama", commit, endpoint=hub.url), tell=told[holder].append)

    with ThreadPoolExecutor(2) as executor:
        both = [executor.submit(bring, holder) for holder in told]
        wait_for("no weights yet", lambda: all(now and now[-1] == 0 for now in told.values()))
        permits.release()
        wait_for("one of two files", lambda: all(now[-1] in (37, 62) for now in told.values()))
        permits.release()
        assert {one.result() for one in both} == {root / "acme--llama" / commit}
    assert all(now == sorted(now) for now in told.values())


def test_who_is_told_may_end_it_and_the_next_one_goes_on_at_once(hub: ServedHub, root: Path) -> None:
    class Enough(Exception):
        pass

    def enough(_: int) -> None:
        raise Enough

    commit, hub.trouble.halfway = commit_of(hub), threading.Event()
    model = HubModel("acme/llama", commit, endpoint=hub.url)
    with pytest.raises(Enough):
        ModelCache(root, holder="pod-a", patience=cache_filler.PATIENCE).get(model, tell=enough)
    assert not list((root / "acme--llama").glob("*.lease.*")), "nobody waits for one who has ended"
    hub.trouble.halfway.set()
    assert is_whole(get(hub, root, commit))


@may_mount
def test_a_disk_that_is_too_small_is_one_sentence(hub: ServedHub, root: Path) -> None:
    with filler(hub, root, "pod-a", "main", before=f"mount -t tmpfs -o size=400k tmpfs '{root}'") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith(
        f"--model: acme/llama does not fit: it needs 0.8 MB more, and {root} has 0.4 MB free"
    )
    assert given(hub) == []


@may_mount
def test_a_cache_that_is_only_read_is_used_and_says_what_it_lacks(hub: ServedHub, root: Path) -> None:
    folder = get(hub, root, None)
    read_only, other = f"mount --bind '{root}' '{root}' && mount -o remount,ro,bind '{root}'", "0" * 40
    with filler(hub, root, "pod-a", folder.name, "main", other, before=read_only) as process:
        told, said = process.communicate(timeout=60)
    assert told.splitlines() == [str(folder)] * 2
    assert process.returncode == 2
    assert f"acme/llama is not in the cache {root}, which cannot be written (Read-only file system)" in said
