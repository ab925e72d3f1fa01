"""A rank that is lost ends the engine, with its number and the reason."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import model_folder
from support.ranks import ranked

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.ranks import Lost
from lorafleet_inference.engine.steps import StepFailed

LONG = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
PATIENCE_SECONDS = 120.0


@pytest.fixture
def config() -> EngineConfig:
    return EngineConfig(model=str(model_folder("llama")), device="cpu", num_threads=1, cpu_kernels=False)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_rank_that_dies_in_a_step_ends_the_engine_with_rank_and_reason(config: EngineConfig) -> None:
    with ranked(config, 2) as engine:
        engine.submit("long", None, (5, 6, 7), LONG)
        for _ in range(3):
            engine.step()
        os.kill(engine.ranks[0].process.pid, signal.SIGKILL)
        with pytest.raises(StepFailed, match=r"rank 1: its process was ended by SIGKILL"):
            engine.run_until_ended(["long"])
        wait_for(lambda: bool(engine.lost))
        assert engine.lost == [Lost("rank 1: its process was ended by SIGKILL")]
        assert engine.events()[-1].finish is not None, "its requests are told"


def test_a_rank_that_hangs_is_lost_within_seconds(config: EngineConfig) -> None:
    with ranked(config, 2, silent_seconds=3) as engine:
        pid = engine.ranks[0].process.pid
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: bool(engine.lost))
        os.kill(pid, signal.SIGCONT)
        assert engine.lost == [Lost("rank 1: gave no sign of life for 3 seconds")]


def test_a_rank_whose_part_of_the_base_cannot_be_served_says_so_with_the_option(
    config: EngineConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(config.model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, -1] = torch.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    lost: list[Lost] = []
    with pytest.raises(StepFailed, match="rank 1: "), ranked(replace(config, model=str(folder)), 2, lost=lost):
        pass
    wait_for(lambda: bool(lost))
    assert lost[0].option == "--model"
    assert "rank 1: " in lost[0].message
    assert "down_proj.weight holds values that are not finite" in lost[0].message
