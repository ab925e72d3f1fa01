"""Hosts that join the one with the engine, over the loopback: who is let in, what is told of those that go, files of adapters."""

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.hosts import SECRET, free_port

from lorafleet_common.errors import ConfigError
from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.types import AdapterPlan, MergedParts
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.gathering import Gathering, difference
from lorafleet_inference.engine.hosts import Host
from lorafleet_inference.engine.joining import HostProgram, Leader, Phase
from lorafleet_inference.engine.merging import MajoritySign, MergeMethod, MergePart, merge_of
from lorafleet_inference.engine.rank_program import RankProgram
from lorafleet_inference.engine.steps import StepFailed
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.ranks.handshake import introduce
from lorafleet_inference.model.ranks.host_messages import HOST_CODEC, Alive, Hello, Join, Put, Stored
from lorafleet_inference.model.ranks.wire import Channel
from lorafleet_inference.model_print import print_of

PATIENCE_SECONDS = 60.0


class Sleeper(RankProgram):
    """A rank that does nothing until it is told something, or its engine goes."""

    def __init__(self, numbers: Sequence[int]) -> None:
        script = f"import socket; socket.socket(fileno={numbers[1]}).recv(1)"
        self._process = subprocess.Popen([sys.executable, "-S", "-c", script], pass_fds=numbers)


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return EngineConfig(
        model=str(folder),
        device="cpu",
        num_threads=2,
        tensor_parallel_size=4,
        hosts=2,
        ranks_host="127.0.0.1",
        ranks_port=free_port(),
        ranks_secret=SECRET,
        join_timeout_seconds=PATIENCE_SECONDS,
    )


class Running:
    """A host on a thread."""

    def __init__(self, program: HostProgram) -> None:
        self.program = program
        self.result: int | ConfigError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self.program.run()
        except ConfigError as error:
            self.result = error

    def wait(self) -> int | ConfigError | None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        return self.result


@contextmanager
def joining(config: EngineConfig, index: int = 1, **options: Any) -> Iterator[Running]:
    program = HostProgram(index, f"pod-{index}", Leader("127.0.0.1", config.ranks_port), config, Sleeper, **options)
    running = Running(program)
    try:
        yield running
    finally:
        program.abort()
        running.wait()


@contextmanager
def gathered(config: EngineConfig, **options: float) -> Iterator[tuple[Gathering, Host, Running]]:
    with closing(Gathering(config, **options)) as gathering, joining(config) as running:
        (host,) = gathering.wait()
        yield gathering, host, running


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lost(gathering: Gathering) -> list[str]:
    words: list[str] = []
    gathering.follow(lambda host, why: words.append(f"{host.name}: {why}"))
    return words


def speak(config: EngineConfig, kind: Any = "control", rank: int | None = None) -> Channel:
    """Open a connection as a host does."""
    connection = socket.create_connection(("127.0.0.1", config.ranks_port))
    introduce(connection, config.ranks_secret)
    channel = Channel(connection, HOST_CODEC)
    channel.limit(PATIENCE_SECONDS)
    channel.send(Hello(1, kind, rank))
    return channel


def test_a_host_runs_the_ranks_that_are_its_own_and_ends_with_the_engine(config: EngineConfig) -> None:
    with closing(Gathering(config)) as gathering, joining(config) as running:
        (host,) = gathering.wait()
        assert host.ranks == range(2, 4)
        assert sorted(host.pipes) == [2, 3]
        assert host.name == "pod-1 (127.0.0.1)"
        wait_for(lambda: running.program.phase is Phase.RUNNING)
        words = lost(gathering)
        for pipes in host.pipes.values():
            pipes.steps.close()  # as at the end of an engine
        assert [host.status_of(rank, PATIENCE_SECONDS) for rank in host.ranks] == [0, 0]
        gathering.close()
        assert running.wait() == 0
        assert not words


def test_the_end_of_an_engine_that_did_not_end_its_ranks_ends_the_host_with_a_failure(config: EngineConfig) -> None:
    with gathered(config) as (gathering, host, running):
        wait_for(lambda: running.program.phase is Phase.RUNNING)
        running.program._ranks[2].kill()
        assert host.status_of(2, PATIENCE_SECONDS) == -9
        gathering.close()
        assert running.wait() == 1


def test_an_engine_that_hangs_ends_the_host(config: EngineConfig) -> None:
    with closing(Gathering(config)) as gathering, joining(config, silent_seconds=1.5) as running:
        (host,) = gathering.wait()
        with host._changed:  # its signs of life wait for this
            wait_for(lambda: running.program.phase is Phase.ENDED)
            running.program.abort()
            assert running.wait() == 1


def test_a_host_that_goes_is_told_with_its_name(config: EngineConfig) -> None:
    with gathered(config) as (gathering, host, running):
        words = lost(gathering)
        running.program.abort()
        wait_for(lambda: words)
        assert words == ["pod-1 (127.0.0.1): its host closed the connection"]
        assert host.why_silent == "its host closed the connection"


def test_a_host_that_hangs_is_told_with_its_name(config: EngineConfig) -> None:
    with closing(Gathering(config, silent_seconds=1)) as gathering, closing(speak(config)) as control:
        control.send(Join("pod-1", config, print_of(Path(config.model)), "/nowhere"))
        with pytest.raises(
            StepFailed, match=r"^rank 2 on pod-1 \(127.0.0.1\): its host gave no sign of life for 1 seconds$"
        ):
            gathering.wait()


def test_a_host_that_never_comes_is_named_with_its_ranks(config: EngineConfig) -> None:
    with (
        closing(Gathering(replace(config, join_timeout_seconds=0.05))) as gathering,
        pytest.raises(StepFailed, match=r"^host 1 with ranks 2 to 3 did not come within 0.05 seconds \(--join-timeout"),
    ):
        gathering.wait()


def test_a_host_that_goes_while_others_are_awaited_ends_the_start(config: EngineConfig) -> None:
    config = replace(config, tensor_parallel_size=3, hosts=3)
    with closing(Gathering(config)) as gathering, joining(config, 2) as running:
        threading.Thread(target=lambda: (wait_for(lambda: running.program._ranks), running.program.abort())).start()
        with pytest.raises(StepFailed, match=r"^rank 2 on pod-2 \(127.0.0.1\): its host closed the connection$"):
            gathering.wait()


def test_who_does_not_know_the_secret_is_not_let_in(config: EngineConfig, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Gathering(replace(config, join_timeout_seconds=1))) as gathering:
        with joining(replace(config, ranks_secret="guessed")) as running:
            error = running.wait()
        assert isinstance(error, ConfigError)
        assert error.option == "--ranks-secret"
        with pytest.raises(StepFailed, match="host 1 with ranks 2 to 3 did not come"):
            gathering.wait()
    assert "a connection of 127.0.0.1 to the port of the hosts is refused: it does not know the secret" in caplog.text


def test_a_host_does_not_talk_to_an_engine_that_does_not_know_the_secret(config: EngineConfig) -> None:
    """One that only repeats what a host says cannot have shown that it knows it."""
    with socket.create_server(("127.0.0.1", config.ranks_port)) as listener:

        def impersonate() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"lorafleet ranks\x01" + bytes(32))
                said = connection.recv(4096)
                connection.sendall(said[-32:])
                assert connection.recv(1) == b"", "the host says nothing more"

        thread = threading.Thread(target=impersonate)
        thread.start()
        with joining(config) as running:
            error = running.wait()
        thread.join()
    assert isinstance(error, ConfigError)
    assert "does not know the secret" in error.problem


@pytest.mark.parametrize("content", [b"", b"GET / HTTP/1.1\r\n\r\n" * 8, bytes(200)])
def test_strangers_do_not_hinder_the_hosts(config: EngineConfig, content: bytes) -> None:
    with (
        closing(Gathering(config)) as gathering,
        socket.create_connection(("127.0.0.1", config.ranks_port)) as stranger,
    ):
        stranger.sendall(content)
        with joining(config):
            assert len(gathering.wait()) == 1


def test_an_option_that_is_not_as_on_the_first_host_is_refused_by_name_on_both(config: EngineConfig) -> None:
    with closing(Gathering(config)) as gathering, joining(replace(config, max_rank=8)) as running:
        with pytest.raises(ConfigError, match=r"--max-rank: host 1, pod-1: is 8 on this host and 64 on the first one"):
            gathering.wait()
        error = running.wait()
    assert isinstance(error, ConfigError)
    assert error.option == "--max-rank"


def test_another_model_is_refused(config: EngineConfig, tmp_path: Path) -> None:
    shutil.copytree(config.model, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"others")
    with closing(Gathering(config)) as gathering, joining(replace(config, model=str(tmp_path / "other"))) as running:
        with pytest.raises(ConfigError, match="--model"):
            gathering.wait()
        assert isinstance(running.wait(), ConfigError)


def test_what_is_a_hosts_own_may_differ(config: EngineConfig) -> None:
    assert difference(config, replace(config, model="/x", kernel_cache="/y", num_threads=7, ranks_secret="-")) is None
    refusal = difference(config, replace(config, kv_cache_memory_bytes=7))
    assert refusal is not None
    assert refusal.option == "--kv-cache-memory"


def test_a_host_waits_for_an_engine_that_is_not_there_yet_and_gives_up_in_time(config: EngineConfig) -> None:
    with joining(replace(config, join_timeout_seconds=0.05)) as running:
        error = running.wait()
    assert isinstance(error, ConfigError)
    assert error.option == "--leader"
    assert f"no engine at 127.0.0.1:{config.ranks_port} within 0.05 seconds" in error.problem


def test_a_host_that_is_told_to_end_before_it_joined_ends(config: EngineConfig) -> None:
    with joining(config) as running:
        running.program.stop()
        assert running.wait() == 0


def plan_of(folder: Path, *files: str) -> AdapterPlan:
    facts = AdapterFacts(rank=1, size_bytes=0, target_modules=[])
    return AdapterPlan(folder, (), files, facts, Vocabulary(1, 1))


def test_files_of_an_adapter_are_on_the_host_while_they_are_lent(config: EngineConfig, tmp_path: Path) -> None:
    content = {"adapter_model.safetensors": b"x" * 3_000_000, "more/second.safetensors": b""}
    for name, some in content.items():
        (tmp_path / "adapter" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "adapter" / name).write_bytes(some)
    plan = plan_of(tmp_path / "adapter", *content)
    with gathered(config) as (_, host, _):
        with host.lend(plan) as there:
            assert there.directory != plan.directory
            assert {name: (there.directory / name).read_bytes() for name in content} == content
            assert replace(there, directory=plan.directory) == plan
        wait_for(lambda: not there.directory.exists())

        merge = merge_of(
            [MergePart("a", "d", str(plan.directory), 0.5)] * 2,
            MergeMethod.LINEAR,
            density=1,
            majority_sign=MajoritySign.TOTAL,
        )
        merged = replace(plan_of(Path(), "none"), merged=MergedParts(merge, (plan, plan)))
        with host.lend(merged) as there:
            assert there.merged is not None
            folders = [part.directory for part in there.merged.plans]
            assert len({*folders, plan.directory}) == 3
            assert all((folder / name).read_bytes() == some for folder in folders for name, some in content.items())
        wait_for(lambda: not any(folder.exists() for folder in folders))


def test_a_file_that_is_gone_or_cannot_be_kept_fails_the_adapter_alone(config: EngineConfig, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"x")
    with gathered(config) as (gathering, host, _):
        words = lost(gathering)
        wanted = r"host pod-1 \(127.0.0.1\) could not be given gone: "
        with pytest.raises(AdapterError, match=wanted) as gone, host.lend(plan_of(tmp_path, "gone")):
            pass
        assert gone.value.reason is Reason.LOAD_FAILED
        (host._folder / str(host._num_lent + 1)).write_bytes(b"in the way")
        wanted = r"host pod-1 \(127.0.0.1\): here cannot be kept: "
        with pytest.raises(AdapterError, match=wanted), host.lend(plan_of(tmp_path, "here")):
            pass
        with host.lend(plan_of(tmp_path, "here")) as there:
            assert (there.directory / "here").read_bytes() == b"x"
        assert not words


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", ""])
def test_a_name_that_leaves_the_folder_is_refused(config: EngineConfig, tmp_path: Path, name: str) -> None:
    with gathered(config) as (_, host, _):
        assert host.files is not None
        host.files.send(Put(1, name, 3))
        host.files.send_bytes(b"abc")
        stored = host.files.recv()
        assert isinstance(stored, Stored)
        assert "is no name of a file" in stored.problem


def test_what_is_no_message_ends_the_connection(config: EngineConfig) -> None:
    with ExitStack() as ends:
        gathering = ends.enter_context(closing(Gathering(config)))
        control = ends.enter_context(closing(speak(config)))
        control.send(Join("pod-1", config, print_of(Path(config.model)), "/nowhere"))
        control.send(Alive())
        control.send_bytes(b"\x00\x00\x00\x01\xff?")
        with pytest.raises(StepFailed, match="the connection with its host is lost: no message has the number 255"):
            gathering.wait()
