"""Several threads read an adapter: as one would, and failing as one would."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.row_layout import Place, RowLayout
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite
from lorafleet_inference.device.host import HostDevice
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.arena import Arena
from lorafleet_inference.model.readers import READER_BYTES, each_by, num_readers
from lorafleet_inference.model.slab import Slab, load_slab

WIDTH, RANK, NUM_MODULES = 512, 64, 50


def test_threads_work_at_the_same_time_on_each_item_once() -> None:
    barrier, done = threading.Barrier(3, timeout=60), list[int]()

    def do(item: int) -> None:
        assert torch.is_inference_mode_enabled()
        barrier.wait()
        done.append(item)

    with torch.inference_mode():
        each_by(3, do, range(9))
    assert sorted(done) == list(range(9))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_what_the_first_item_raised_is_raised(num_threads: int) -> None:
    done: list[int] = []

    def do(item: int) -> None:
        done.append(item)
        if item >= 4:
            raise ValueError(str(item))

    with pytest.raises(ValueError, match=r"^4$"):
        each_by(num_threads, do, range(100))
    assert set(range(5)) <= set(done)
    assert len(done) < 10


def test_little_is_read_by_one() -> None:
    assert [num_readers(size, 4) for size in (0, 2 * READER_BYTES - 1, 2 * READER_BYTES, 99 * READER_BYTES)] == [
        1, 1, 2, 4,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> AdapterPlan:
    """Of 6 MiB in bfloat16, in two files."""
    folder, generator = tmp_path_factory.mktemp("adapter"), torch.Generator().manual_seed(0)
    names = [f"m{number}" for number in range(NUM_MODULES)]
    tensors = {f"{name}.{part}": torch.randn(shape, generator=generator) for name in names
               for part, shape in (("a", (RANK, WIDTH)), ("b", (WIDTH, RANK)))}  # fmt: skip
    keys = sorted(tensors)
    for name, some in (("one", keys[:20]), ("two", keys[20:])):
        save_file({key: tensors[key] for key in some}, folder / name)
    sites = tuple(LoraSite(name, RANK, 2.0, f"{name}.a", f"{name}.b") for name in names)
    facts = AdapterFacts(rank=RANK, size_bytes=1, target_modules=names)
    return AdapterPlan(folder, sites, ("one", "two"), facts, Vocabulary(9, 9))


def read(plan: AdapterPlan, max_readers: int) -> Slab:
    layout = RowLayout({site.module: Place(WIDTH, WIDTH, 2 * WIDTH) for site in plan.sites})
    arena = Arena(0, layout.page, torch.bfloat16, HostDevice())
    return load_slab(plan, layout, torch.bfloat16, arena, max_readers=max_readers)


def test_several_threads_read_what_one_reads(plan: AdapterPlan) -> None:
    one, several = read(plan, 1), read(plan, 3)
    assert several.num_bytes >= 3 * READER_BYTES, "so that there are three"
    assert several.ranks == one.ranks
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(several.pages.pages, one.pages.pages, strict=True))


def test_a_file_that_is_gone_is_named_whoever_reads(plan: AdapterPlan, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes((plan.directory / "one").read_bytes())
    with pytest.raises(AdapterError, match="two cannot be read") as caught:
        read(replace(plan, directory=tmp_path), 3)
    assert caught.value.reason is Reason.ARTIFACT_INVALID
