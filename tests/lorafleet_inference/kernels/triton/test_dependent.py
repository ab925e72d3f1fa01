"""Kernels that begin before the launch ahead of them is done wait for what it writes; a missing wait is found."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.models import save_adapter, save_model
from support.recorded_graphs import RecordedGraphs
from support.triton_launches import Launches, launches
from support.triton_sizes import SMALL
from triton.language.extra import cuda

from lorafleet_common.options import add_options, read_values
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.kernels.layer_ops import Activation
from lorafleet_inference.kernels.triton import dependent
from lorafleet_inference.kernels.triton.backend import TritonKernels, load_triton
from lorafleet_inference.kernels.triton.blocks import blocks_of
from lorafleet_inference.kernels.triton.layer_ops import TritonLayerOps
from lorafleet_inference.kernels.triton.rows import LoraStep
from lorafleet_inference.model.graph_rooms import DecodeRoom
from lorafleet_inference.model.step_kernels import StepKernels
from lorafleet_inference.options import OPTIONS

from .test_graphs import ADAPTERS, ASKED, MODEL, engine_of
from .test_rows import CASES, Setup

if torch.cuda.is_available():
    pytest.skip("what is read before a wait is seen by the interpreter", allow_module_level=True)

from triton.runtime.errors import InterpreterError

DEPENDENT = replace(SMALL, dependent_launch=True)
CPU = torch.device("cpu")
NAMES = ("skewed", "long segments", "modules that some lack", "largest ranks", "an x that is split")
"""Both kernels and the one in their place, ranks from 0 to 256, programs that have nothing to do."""


class Step:
    """A step of some sites, whose x and y a product has written right before each."""

    def __init__(self, name: str, *, begins_early: bool = True) -> None:
        self.setup = Setup(CASES[name], torch.bfloat16, CPU, sizes=DEPENDENT if begins_early else SMALL)
        self._step: LoraStep = self.setup.step()

    def run(self, order: int | None = None) -> Launches:
        """Add twice at a site, the first time to another y; return what was launched."""
        setup, modules = self.setup, range(len(self.setup.layout.places))
        with launches(order) as seen:
            for y in (setup.y.clone(), setup.y):
                seen.wrote(setup.x, y)
                setup.add_at(self._step, modules, y)
        return seen


@pytest.mark.parametrize("order", [None, 1])
@pytest.mark.parametrize("name", NAMES)
def test_it_waits_and_says_the_same(name: str, order: int | None) -> None:
    step, other = Step(name), Step(name, begins_early=False)
    seen, plain = step.run(order), other.run()
    step.setup.check()
    assert step.setup.y.equal(other.setup.y), "in the order in which it is summed"
    assert plain.early == [False] * len(plain.kernels)
    assert seen.kernels == plain.kernels
    assert seen.early == [False, False, *[True] * (len(seen.kernels) - 2)]
    assert (seen.read, seen.rounds) == (plain.read, plain.rounds)


@pytest.mark.parametrize("name", ["skewed", "long segments"])
def test_a_wait_that_is_left_out_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "gdc_wait", lambda: None)
    monkeypatch.setattr(cuda, "gdc_launch_dependents", lambda: None)
    with pytest.raises(InterpreterError, match="before it has waited"):
        Step(name).run()


def test_a_launch_that_is_let_go_too_soon_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "gdc_wait", lambda: None)
    with pytest.raises(InterpreterError, match="lets others begin before it has waited"):
        Step("skewed").run()


def test_a_program_that_has_nothing_to_do_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a launch would be done before the one ahead of it, and the next would begin beside that."""
    step = Step("skewed")
    step.run()
    step.setup.tables.entries.zero_()
    assert step.run().early == [True] * 2, "no rank anywhere, and each program waits"
    monkeypatch.setattr(cuda, "gdc_wait", lambda: None)
    monkeypatch.setattr(cuda, "gdc_launch_dependents", lambda: None)
    step = Step("skewed")
    step.setup.tables.entries.zero_()
    with pytest.raises((InterpreterError, RuntimeError), match="ends that has not waited"):
        step.run()


def test_records_are_done_before_anybody_begins_early() -> None:
    """Whoever follows `record` begins when it is done: a launch that did not would read what is being written."""
    step = Step("skewed")
    with launches() as seen:
        step.setup.add_at(step._step, range(3), step.setup.y)
        assert seen.early == [False, False]
        seen.wrote(step._step._records)
        with pytest.raises(InterpreterError, match="reads records, which may be written still"):
            step.setup.add_at(step._step, range(3), step.setup.y)


def test_lora_in_float32_does_not() -> None:
    setup = Setup(CASES["long segments"], torch.float32, CPU, sizes=DEPENDENT)
    assert not any(setup.run().early)
    setup.check()


def test_norm_and_gate() -> None:
    ops, plain = TritonLayerOps(is_dependent=True), TritonLayerOps()
    torch.manual_seed(0)
    x, residual, weight = torch.randn(3, 80), torch.randn(3, 80), torch.randn(80)
    with launches() as seen:
        told = []
        for one in (ops, plain):
            kept = residual.clone()
            seen.wrote(x, kept)
            told.append((one.norm(x, weight, 1e-5, residual=kept), kept, one.gate(x, Activation.SILU)))
    for mine, others in zip(*told, strict=True):
        assert mine.equal(others)
    assert seen.early == [True, True, False, False]


def test_a_step_that_does_not_ask_for_it_has_none_of_it() -> None:
    assert not SMALL.dependent_launch
    assert TritonKernels(CPU, SMALL).layer_ops._constants == {"DEPENDENT": False}
    assert TritonKernels(CPU, DEPENDENT).layer_ops._constants == {"DEPENDENT": True, "launch_pdl": True}


@pytest.mark.parametrize(("capability", "has_it"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_the_option_is_for_gpus_that_have_it(
    capability: tuple[int, int], has_it: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lorafleet_inference.device.cuda.capability", lambda _: capability)
    for asked in (False, True):
        sizes = blocks_of(CPU, dependent_launch=asked)
        assert sizes is not None
        assert sizes.dependent_launch == (asked and has_it)
    kernels = load_triton(CPU, None, dependent_launch=True)
    assert kernels is not None
    assert kernels.blocks.dependent_launch == has_it
    assert ("--dependent-launch needs a GPU of compute capability 9.0" in caplog.text) == (not has_it)


def test_the_option_reaches_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "lorafleet_inference.kernels.triton.backend.load_triton",
        lambda *_, dependent_launch: asked.append(dependent_launch),
    )
    parser = argparse.ArgumentParser()
    add_options(parser, OPTIONS)
    for option in ((), ("--dependent-launch",), ("--no-dependent-launch",)):
        given = read_values(OPTIONS, parser.parse_args(option), {}).given
        StepKernels.of(torch.device("cuda"), EngineConfig(model="", device="cuda", **given), None)
    assert asked == [False, True, False]


def test_a_room_is_captured_anew_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `benchmarks/gpu.py` does; the answers are the same, and what is captured behind it is as the option says."""
    model = save_model(MODEL, tmp_path / "model")
    engine = engine_of(model, CPU, TritonKernels(CPU, SMALL), RecordedGraphs())
    engine.register({"small": save_adapter(model, tmp_path / "small", ADAPTERS["small"])})
    graphs, room, asked = engine.runner.graphs, DecodeRoom(1, 1), set()
    assert graphs is not None
    plain = dependent.constants

    def constants(*, is_dependent: bool, begins_early: bool = True) -> dict[str, object]:
        asked.add(is_dependent)
        return plain(is_dependent=is_dependent, begins_early=begins_early)

    monkeypatch.setattr(dependent, "constants", constants)
    for number, begins_early in enumerate((None, True, False)):
        if begins_early is not None:
            graphs.capture_anew(room, dependent_launch=begins_early, max_rank=16)
            assert asked == {begins_early, False}
        engine.submit(str(number), "small", (5, 6, 7), ASKED)
        engine.run_until_ended([str(number)])
        asked.clear()
    assert engine.tokens("0") == engine.tokens("1") == engine.tokens("2")
    assert graphs.num_replayed >= 9
