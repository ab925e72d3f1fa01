"""Each wait that has a name is needed: without it, some order that a device may choose gives something else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.absent_cuda import CUDA
from support.engines import key_of
from support.families import VOCABULARY, AdapterSpec
from support.models import save_adapter, save_model
from support.simulated_cuda import SimulatedCuda
from support.simulated_engine import SimulatedRunner, on_cuda
from transformers import LlamaConfig

from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.device.devices import device_at
from lorafleet_inference.device.interface import Order
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.plan import NewRequest, StepItem, StepPlan, Unconstrained
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.host_adapter import HostAdapter

MODEL = LlamaConfig(
    vocab_size=VOCABULARY, initializer_range=0.3, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
)  # fmt: skip
SEEDS = range(12)
NAMES = ("one", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_model(MODEL, tmp_path_factory.mktemp("base") / "model")
    for seed, name in enumerate(NAMES):
        save_adapter(made, made.parent / name, AdapterSpec(8, seed=seed))
    save_adapter(made, made.parent / "dora", AdapterSpec(4, seed=9, options={"use_dora": True}))
    return made.parent


@contextmanager
def runner_on(simulated: SimulatedCuda, folder: Path) -> Iterator[tuple[SimulatedRunner, list[HostAdapter]]]:
    config = EngineConfig(
        model=str(folder / "model"), device="cuda", dtype="float32", num_threads=1, max_batch_tokens=16, max_rank=8,
        max_resident_adapters=1, max_batch_requests=1, kv_cache_memory_bytes=1 << 14, gpu_kernels=False, decoder="own",
    )  # fmt: skip
    with simulated.there():
        runner = SimulatedRunner(simulated, on_cuda(config), config)
        plans = [inspect_adapter(folder / name, runner.facts, max_rank=8) for name in NAMES]
        yield runner, [runner.load_slab(plan) for plan in plans]


def asked(number: int, name: str | None) -> StepPlan:
    sampling = SamplingParams(max_tokens=4, temperature=0)
    new = NewRequest(f"r{number}", None if name is None else key_of(name), (5, 9, 7, 6), 4, sampling, (0,))
    gone = (f"r{number - 1}",)
    return StepPlan((StepItem(f"r{number}", 0, 4, samples=True),), gone=gone, new=(new,))


def pages_of(slab: HostAdapter) -> range:
    """The same for all."""
    return range(len(slab.slab.pages))


def both_adapters(simulated: SimulatedCuda, folder: Path) -> list[int]:
    """One is copied and computed with; the other comes in its place before the step is collected, and is computed with."""
    found = []
    with runner_on(simulated, folder) as (runner, slabs):
        before = None
        for number, (name, slab) in enumerate(zip(NAMES, slabs, strict=True)):
            runner.install(key_of(name), pages_of(slab), slab)
            computing = runner.submit(asked(number, name))
            computing.choose(Unconstrained())
            runner.remove(key_of(name))
            if before is not None:
                found.append(before.collect().sampled[f"r{number - 1}"].token_id)
            before = computing
        assert before is not None
        found.append(before.collect().sampled["r1"].token_id)
        simulated.check()
    return found


def followed(simulated: SimulatedCuda, folder: Path) -> list[float]:
    """What lies in the pages of KV when a step was followed."""
    with runner_on(simulated, folder) as (runner, slabs):
        runner.install(key_of("one"), pages_of(slabs[0]), slabs[0])
        runner.follow(asked(0, "one"), ())
        found = simulated.contents(runner._layers[0].keys).flatten().tolist()
        simulated.check()
    return [round(one, 4) for one in found[:32]]


def measured(simulated: SimulatedCuda, folder: Path) -> list[float]:
    """What lies on the host of an adapter whose norms are measured on the base."""
    with runner_on(simulated, folder) as (runner, _):
        plan = inspect_adapter(folder / "dora", runner.facts, max_rank=8)
        try:
            pages = runner.load_slab(plan).slab.pages.pages
        except AdapterError:  # what was read were no numbers
            return []
        finally:
            simulated.check()
    return [round(one, 3) for page in pages for one in page.tolist()]


def captured(simulated: SimulatedCuda, _: Path) -> list[float]:
    """Pages that a captured computation writes where a table says, and steps write after it was captured."""
    with simulated.there(), torch.inference_mode():
        device = device_at(CUDA)
        table, pages = torch.zeros(1, dtype=torch.int64, device=CUDA), torch.zeros(4, device=CUDA)
        device.check()
        device.copy(table, device.pinned((1,), torch.int64).fill_(3))
        graphs = device.graphs()
        assert graphs is not None
        graph = graphs.capture(lambda: pages.index_fill_(0, table, 7.0))
        pages[2:] = 9.0
        device.copy(table, device.pinned((1,), torch.int64).fill_(1))
        device.check()
        before: list[float] = simulated.contents(pages).tolist()
        graph.replay()
        device.check()
        return before + simulated.contents(pages).tolist()


SCENES: dict[Order, Callable[[SimulatedCuda, Path], list[int] | list[float]]] = {
    Order.RESULTS: both_adapters,
    Order.PAGES_LEFT: both_adapters,
    Order.ADAPTER_COPIED: both_adapters,
    Order.FOLLOWED: followed,
    Order.BASE_READ: measured,
    Order.TABLES_SENT: captured,
    Order.WARMED_UP: captured,
}


@pytest.mark.parametrize("order", Order, ids=str)
def test_no_wait_is_superfluous(order: Order, folder: Path) -> None:
    scene = SCENES[order]
    right = scene(SimulatedCuda(0, haste=1.0), folder)
    simulated = [SimulatedCuda(seed, haste=0.0) for seed in SEEDS]
    assert all(scene(one, folder) == right for one in simulated[:2])
    assert order in simulated[0].waited
    assert any(scene(SimulatedCuda(seed, order, haste=0.0), folder) != right for seed in SEEDS)


def test_the_computation_that_is_captured_writes_where_it_should(folder: Path) -> None:
    assert captured(SimulatedCuda(0), folder) == [0.0, 0.0, 9.0, 9.0, 0.0, 7.0, 9.0, 9.0]


def test_an_adapter_is_one_copy_and_no_step_waits_for_it(folder: Path) -> None:
    simulated = SimulatedCuda(0, haste=0.0)
    with runner_on(simulated, folder) as (runner, slabs):
        computing = runner.submit(asked(0, None))
        computing.choose(Unconstrained())
        steps = list(simulated.current().queue)
        work = simulated.begin()
        runner.install(key_of("two"), pages_of(slabs[1]), slabs[1])
        assert (work.copies_in, work.waits) == ([slabs[1].slab.num_bytes], [])
        queued = list(simulated.current().queue)
        assert queued == steps[len(steps) - len(queued) :], "nothing came behind the step"
        assert computing.collect().sampled
        simulated.check()
