"""How much a decode step of Llama-3-8B's shapes asks of a device: 128 rows, 32 adapters of rank 16 on all its modules.

Nothing is computed and no weight is there. The ceilings are what is counted today, so that they can only go down.
"""

from collections.abc import Iterator

import pytest
import torch
from support.absent_cuda import CUDA, AbsentCuda
from support.counted_step import DECODE, CountedRunner, Step, counted_runner
from support.step_cost_page import FEW, GRAPHS, PAGE, Counted, count, page_of, with_tables

from lorafleet_inference.device.devices import device_at
from lorafleet_inference.device.interface import Order

MAX_OPERATIONS = {
    "own": {
        "decode": 567,
        "decode, base only": 310,
        "a prompt of 256": 568,
        "with a prompt of 300": 600,
        "with a prompt of 400": 595,
    },
    "transformers": {
        "decode": 1726,
        "decode, base only": 1277,
        "a prompt of 256": 1727,
        "with a prompt of 300": 1759,
        "with a prompt of 400": 1754,
    },
}
"""On the device. The goal of the own decoder's step with LoRA is 600."""
MAX_ASKED = 6
"""By Python, beside a graph."""
MAX_COPIES = 1
"""To the device, with all that a step needs there."""
SAME_SIZE = (
    (Step(), Step(context=100)), (Step(), Step(num_adapters=24)), (Step(), Step(temperature=0.0)),
    (Step(prompt_tokens=300), Step(prompt_tokens=290, context=100, num_adapters=24)),
    (Step(prompt_tokens=256, is_alone=True), Step(prompt_tokens=200, is_alone=True)),
)  # fmt: skip


@pytest.fixture(scope="module")
def counted() -> dict[str, Counted]:
    return {code: count(own_decoder=code == "own") for code in MAX_OPERATIONS}


@pytest.fixture(scope="module")
def own(counted: object) -> Iterator[CountedRunner]:
    """One device at a time is there."""
    with counted_runner(FEW, own_decoder=True) as runner:
        yield runner


@pytest.mark.parametrize("code", MAX_OPERATIONS)
def test_no_step_has_more_operations_than_today(counted: dict[str, Counted], code: str) -> None:
    for name, works in counted[code].items():
        number = sum(len(work.operations) for work in works if work is not None)
        assert number <= MAX_OPERATIONS[code][name], name


@pytest.mark.parametrize("code", MAX_OPERATIONS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_step_of_up_to_512_tokens_is_one_replay_and_nothing_waits(
    counted: dict[str, Counted], code: str, name: str
) -> None:
    work, nodes = counted[code][name]
    assert work.num_replays == 1
    assert len(work.operations) + work.num_replays <= MAX_ASKED
    assert len(work.copies_in) <= MAX_COPIES
    assert work.waits == []
    assert nodes is not None
    assert (nodes.copies_in, nodes.copies_out, nodes.waits) == ([], [], [])


@pytest.mark.parametrize("code", MAX_OPERATIONS)
def test_a_step_of_more_tokens_waits_for_nothing(counted: dict[str, Counted], code: str) -> None:
    work, _ = counted[code]["with a prompt of 400"]
    assert (work.num_replays, work.waits) == (0, [])
    assert len(work.copies_in) <= MAX_COPIES


@pytest.mark.parametrize(("step", "like"), SAME_SIZE, ids=str)
def test_steps_of_one_size_ask_for_the_same(own: CountedRunner, step: Step, like: Step) -> None:
    """Whatever contexts, adapters and parameters are: else something of one step were baked into the graph of others."""
    one, other = own.step(step), own.step(like)
    assert one.trace == other.trace
    assert other.num_replays == 1


@pytest.mark.parametrize("code", MAX_OPERATIONS)
def test_a_base_only_step_has_no_operation_of_lora(counted: dict[str, Counted], code: str) -> None:
    for work in counted[code]["decode, base only"]:
        assert work is not None
        assert "LoRA" not in work.by_phase()


def test_lora_on_embedding_and_head_is_three_launches(own: CountedRunner) -> None:
    nodes, without = own.captured[DECODE[2]], own.captured[DECODE[0]]
    assert len(nodes.operations) == len(without.operations) + 3
    assert (nodes.copies_in, nodes.copies_out, nodes.waits) == ([], [], [])


def test_scales_and_offsets_are_a_launch_behind_each_product(own: CountedRunner) -> None:
    nodes, without = own.captured[DECODE[3]], own.captured[DECODE[2]]
    assert len(nodes.operations) == len(without.operations) + 4 * FEW
    assert (nodes.copies_in, nodes.copies_out, nodes.waits) == ([], [], [])


def test_the_page_says_what_is_counted(counted: dict[str, Counted]) -> None:
    page = PAGE.read_text()
    told = page_of(counted["own"], counted["transformers"])
    assert page == with_tables(page, told), "PYTHONPATH=tests .venv/bin/python -m support.step_cost_page"


def test_what_waits_for_a_device_is_seen() -> None:
    """The counter finds what is planted."""
    device = AbsentCuda()
    with device.there():
        here = torch.zeros(4, device=CUDA)
        for wrong in (
            lambda: torch.tensor([1, 2], device=CUDA),
            lambda: torch.zeros(4).to(CUDA, non_blocking=True),
            lambda: torch.zeros(4, pin_memory=True).to(CUDA),
            here.cpu,
            lambda: torch.empty(4).copy_(here, non_blocking=True),
            lambda: device_at(CUDA).current().mark().wait(Order.RESULTS),
            device_at(CUDA).check,
        ):
            work = device.begin()
            wrong()
            assert len(work.waits) == 1
        for raises in (
            here.tolist,
            here[0].item,
            lambda: bool((here > 0).any()),
            here.nonzero,
        ):
            with pytest.raises((RuntimeError, NotImplementedError)):
                raises()
        work = device.begin()
        torch.zeros(4).pin_memory().to(CUDA, non_blocking=True)
        torch.empty(4, pin_memory=True).copy_(here, non_blocking=True)
        (here.view(2, 2) + 1).t()
        assert (work.waits, work.copies_in, work.copies_out) == ([], [16], [16])
        assert (work.operations, work.num_views) == ([("tables", "add")], 2)
