"""Start, clients that leave, draining, a lost engine, options that are wrong."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from safetensors.numpy import load_file, save_file
from support.pod import SOURCES, START_SECONDS, ServedPod, command, is_engine, serve, start
from support.processes import descendants

from lorafleet_inference.engine.background import ENGINE_NICENESS

LONG = {"prompt": "one two three", "max_tokens": 200, "temperature": 0, "extra_body": {"ignore_eos": True}}
RUNNING = 'lorafleet_requests_running{base="tiny"}'


def until(condition: Callable[[], bool], what: str, timeout_seconds: float = 60) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_pod_lives_before_it_is_ready(base_folder: Path) -> None:
    """The program itself; other tests fork theirs."""
    with serve(base_folder, "--log-level=debug", wait_ready=False, forked=False) as pod:
        assert pod.get("/health").status_code == 200
        early = pod.get("/ready")
        if early.status_code == 503:
            assert early.json()["reason"]
            assert early.headers["retry-after"]
            with pod.openai() as client, pytest.raises(openai.APIStatusError) as caught:
                client.completions.create(model="tiny", prompt="x")
            assert caught.value.code == "not_ready"
        pod.wait_for("/ready", 200)
        assert "curl http" in pod.logs
        assert pod.logs.count("garbage collections pass over") == 2, "in both processes"


def test_the_engine_gives_way_to_the_api_process(pod: ServedPod) -> None:
    engine = next(one for one in descendants(pod.process.pid) if is_engine(one))
    own = os.getpriority(os.PRIO_PROCESS, pod.process.pid)
    assert os.getpriority(os.PRIO_PROCESS, engine) == min(19, own + ENGINE_NICENESS)


def test_a_client_that_leaves_cancels_its_request(pod: ServedPod) -> None:
    cancelled = 'lorafleet_requests_total{adapter="red",base="tiny",finish="cancelled"}'
    body = {"model": "red", "prompt": "one", "max_tokens": 250, "ignore_eos": True, "temperature": 0}
    before = pod.metric(cancelled)
    with ExitStack() as still:
        with (
            httpx.Client(trust_env=False, timeout=60) as http,
            http.stream("POST", f"{pod.url}/v1/completions", json={**body, "stream": True}) as answer,
        ):
            next(answer.iter_lines())
            still.enter_context(pod.stopped_engine())
        until(lambda: pod.metric(cancelled) > before, "a stream is not cancelled")
    before = pod.metric(cancelled)
    with pod.stopped_engine():
        with (
            httpx.Client(trust_env=False, timeout=httpx.Timeout(60, read=1)) as http,
            pytest.raises(httpx.ReadTimeout),
        ):
            http.post(f"{pod.url}/v1/completions", json={**body, "n": 16})
        until(lambda: pod.metric(cancelled) >= before + 16, "not cancelled without a stream")
    until(lambda: pod.metric(RUNNING) == 0, "the engine goes on")


async def test_sigterm_lets_streams_end_and_refuses_new_requests(base_folder: Path) -> None:
    with serve(base_folder, "--served-name=tiny") as pod:
        async with pod.async_openai() as client:
            stream = await client.completions.create(model="tiny", stream=True, **LONG)
            first = await anext(aiter(stream))
            with pod.stopped_engine():
                pod.terminate()
                await asyncio.to_thread(pod.wait_for, "/ready", 503)
                with pytest.raises(openai.APIStatusError) as caught:
                    await client.completions.create(model="tiny", prompt="x", max_tokens=1)
                assert caught.value.code == "draining"
            chunks = [first, *[chunk async for chunk in stream]]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert await asyncio.to_thread(pod.wait_ended) == 0


def test_new_requests_are_answered_during_the_grace_time(base_folder: Path) -> None:
    with serve(base_folder, "--served-name=tiny", "--drain-grace-seconds=3") as pod, pod.openai() as client:
        pod.terminate()
        pod.wait_for("/ready", 503)
        assert client.completions.create(model="tiny", prompt="x", max_tokens=1).choices
        assert pod.wait_ended() == 0


def test_streams_that_outlast_the_drain_timeout_are_cut(base_folder: Path) -> None:
    with serve(base_folder, "--served-name=tiny", "--drain-timeout-seconds=0") as pod, pod.openai() as client:
        stream = client.completions.create(model="tiny", stream=True, **LONG)
        next(iter(stream))
        with pod.stopped_engine():
            pod.terminate()
            until(lambda: "are cut" in pod.logs, "streams are not cut")
        assert pod.wait_ended() == 0


def test_a_second_signal_ends_at_once(base_folder: Path) -> None:
    with serve(base_folder, "--served-name=tiny", "--drain-timeout-seconds=600") as pod, pod.openai() as client:
        stream = client.completions.create(model="tiny", stream=True, **LONG)
        next(iter(stream))
        with pod.stopped_engine():
            pod.process.send_signal(signal.SIGINT)
            pod.wait_for("/ready", 503)
            pod.process.send_signal(signal.SIGINT)
            until(lambda: "are cut" in pod.logs, "streams are not cut")
        assert pod.wait_ended() == 0


def test_a_lost_engine_ends_streams_and_the_process(base_folder: Path) -> None:
    with serve(base_folder, "--served-name=tiny") as pod, pod.openai() as client:
        stream = client.completions.create(model="tiny", stream=True, **LONG)
        next(iter(stream))
        with pod.stopped_engine():
            for process_id in descendants(pod.process.pid):
                os.kill(process_id, signal.SIGKILL)
        with pytest.raises(openai.APIError):
            list(stream)
        assert pod.get("/health").status_code == 503
        assert pod.wait_ended() == 1
        assert "the engine was lost" in pod.logs


@pytest.mark.parametrize(
    ("options", "env", "named"),
    [
        (["--model=/nowhere"], {}, "--model"),
        ([], {}, "--model"),
        (["--max-rank=300"], {"LORAFLEET_MODEL": "BASE"}, "--max-rank"),
        (["--max-rank=many"], {"LORAFLEET_MODEL": "BASE"}, "--max-rank"),
        ([], {"LORAFLEET_MODEL": "BASE", "LORAFLEET_MAX_RNAK": "8"}, "LORAFLEET_MAX_RNAK"),
        (["--mdoel=x"], {}, "--mdoel"),
        (["--admin-token-sha256=0123"], {"LORAFLEET_MODEL": "BASE"}, "--admin-token-sha256"),
        (["--model=x", "--admin-token-file=/nowhere"], {"LORAFLEET_MODEL": "BASE"}, ""),
    ],
)
def test_wrong_options_end_the_process_and_are_named(
    base_folder: Path, options: list[str], env: dict[str, str], named: str
) -> None:
    with start(
        *options, env={name: str(base_folder) if value == "BASE" else value for name, value in env.items()}
    ) as pod:
        assert pod.wait_ended() == 2
        assert named in pod.logs
        assert "Traceback" not in pod.logs


def test_a_base_that_cannot_be_loaded_ends_the_process_with_one_sentence(base_folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(base_folder, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with start(f"--model={broken}", "--host=127.0.0.1", "--port=0", "--admin-port=0", f"--cache-dir={tmp_path}") as pod:
        assert pod.wait_ended(START_SECONDS) == 2
        *_, last = pod.logs.splitlines()
        assert (
            "--model: LlamaForCausalLM cannot be loaded: the files lack 1 (model.layers.1.mlp.up_proj.weight)" in last
        )
        assert "Traceback" not in pod.logs


def test_a_taken_port_is_named(pod: ServedPod, base_folder: Path) -> None:
    port = pod.url.rsplit(":", 1)[1]
    with start(f"--model={base_folder}", "--host=127.0.0.1", f"--port={port}", "--admin-port=0") as second:
        assert second.wait_ended() == 2
        assert f"--port: cannot listen on 127.0.0.1 port {port}" in second.logs


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorafleet_inference", *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_validate_and_digest_on_the_command_line(base_folder: Path, adapter_folders: dict[str, Path]) -> None:
    taken = run("validate", str(adapter_folders["red"]), "--model", str(base_folder))
    assert (taken.returncode, taken.stdout.split()[0]) == (0, "accepted:"), taken.stderr
    digest = run("digest", str(adapter_folders["red"])).stdout.strip()
    assert f"digest {digest}" in taken.stdout
    assert "tokenizer the base's\nchat template the base's\n" in taken.stdout
    refused = command("validate", str(adapter_folders["blue"]), "--model", str(base_folder), "--max-rank=4")
    assert (refused.returncode, "RankTooHigh" in refused.stdout) == (1, True)
    assert command("digest", "/nowhere").returncode == 1
