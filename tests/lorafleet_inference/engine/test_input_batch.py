"""What is kept from step to step and gathered is what a plain reading of all plans gives."""

import copy
import random

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rows import KnownRequests
from support.scenarios import KEYS, MAX_MODEL_LEN, simulation_of
from support.simulation import Simulation, request

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.plan import Growth, NewRequest, Sampled, StepItem, StepPlan, StepResult
from lorafleet_inference.kernels.triton.step import StepBlock
from lorafleet_inference.model.batch import FlatBatch, Segment
from lorafleet_inference.model.input_batch import InputBatch
from lorafleet_inference.model.sampler import Choice
from lorafleet_inference.model.wanted import wanted_of

CPU = torch.device("cpu")


def batch_of(num_rows: int) -> InputBatch:
    return InputBatch(num_rows, MAX_MODEL_LEN * KV_BLOCK_TOKENS, CPU, has_chooser=True)


def plainly(known: KnownRequests, batch: FlatBatch) -> dict[str, list[object]]:
    """The batch again, token by token, in its own order of items."""
    said: dict[str, list[object]] = {name: [] for name in ("ids", "positions", "slots", "rows", "tables", "lengths")}
    for item in batch.host.items:
        one = known.of[item.request_id]
        begin = len(said["ids"])
        said["ids"] += one.token_ids[item.start : item.end]
        for position in range(item.start, item.end):
            said["positions"].append(position)
            block = one.blocks[position // KV_BLOCK_TOKENS]
            said["slots"].append(block * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS)
        said["rows"] += [*range(begin, begin + item.num_score), begin + item.num_tokens - 1]
        said["tables"].append(one.blocks[: -(-item.end // KV_BLOCK_TOKENS)])
        said["lengths"].append(one.new.rope_length)
    return said


def segments(known: KnownRequests, batch: FlatBatch, *, of_head: bool) -> list[Segment]:
    """Row by row."""
    made: list[Segment] = []
    at = 0
    for item in batch.host.items:
        new = known.of[item.request_id].new
        positions = [*range(item.start, item.end)]
        if of_head:
            positions = [*positions[: item.num_score], item.end - 1]
        for position in positions:
            adapter = new.adapter if position >= new.adapter_from else None
            if adapter is not None and made and made[-1].end == at and made[-1].adapter == adapter:
                made[-1] = Segment(made[-1].begin, at + 1, adapter)
            elif adapter is not None:
                made.append(Segment(at, at + 1, adapter))
            at += 1
    return made


def check(known: KnownRequests, batch: FlatBatch) -> None:
    plain = plainly(known, batch)
    assert batch.input_ids[0].tolist() == plain["ids"]
    assert batch.position_ids[0].tolist() == plain["positions"]
    assert batch.slots.tolist() == plain["slots"]
    assert batch.sampled_rows.tolist() == plain["rows"]
    assert batch.host.rope_lengths.tolist() == plain["lengths"]
    assert {one.dtype for one in (batch.input_ids, batch.position_ids, batch.slots, batch.sampled_rows)} == {
        torch.int64
    }
    assert batch.choice is not None
    asked = [(known.of[item.request_id].new.sampling, item.end) for item in batch.host.items]
    wanted = wanted_of([(one, one.seed or 0, end) for one, end in asked])
    assert batch.choice.wanted.tolist() == wanted.tolist()
    assert batch.choice.rows.tolist() == batch.host.rows.tolist()
    for index, blocks in enumerate(plain["tables"]):
        assert batch.host.span(index).blocks.tolist() == blocks
    assert list(batch.host.segments) == segments(known, batch, of_head=False)
    assert list(batch.host.head_segments) == segments(known, batch, of_head=True)
    adapters = [one.adapter for one in batch.host.segments]
    late = [one for one in batch.host.items if one.start < known.of[one.request_id].new.adapter_from < one.end]
    assert len(adapters) <= len(set(adapters)) + len(late), "an adapter is one segment, unless it begins within an item"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_step_is_gathered_as_all_plans_say(seed: int) -> None:
    rng = random.Random(seed)
    simulation = simulation_of(rng, seed, {KEYS[0]: (7,), KEYS[1]: (8, 9)})
    plain, packed = batch_of(simulation.max_batch_requests), batch_of(simulation.max_batch_requests)
    for number in range(25):
        for each in range(rng.randrange(3)):
            asked = request(
                f"r{number}.{each}", rng.choice((None, *KEYS)), num_prompt=rng.randrange(1, 40), max_tokens=9
            )
            scored = 0 if rng.random() < 0.3 else None
            sampling = msgspec.structs.replace(
                asked.sampling,
                prompt_logprobs=scored,
                presence_penalty=1.0,
                temperature=rng.random(),
                top_k=rng.choice((None, 3)),
                seed=rng.choice((None, 0, 7, -5, 1 << 70)),
            )
            prompt = tuple(6 + token % 4 for token in asked.prompt_token_ids)
            simulation.submit(msgspec.structs.replace(asked, prompt_token_ids=prompt, sampling=sampling))
        if simulation.stories and rng.random() < 0.2:
            simulation.cancel(rng.choice(list(simulation.stories)))
        compare(simulation, plain, packed)


def compare(simulation: Simulation, plain: InputBatch, packed: InputBatch) -> None:
    known = KnownRequests()
    known.of = copy.deepcopy(simulation.known.of)
    plan = simulation.step(KEYS)
    if not plan.items:
        return
    known.apply(plan)
    chosen = {
        item.request_id: Sampled(simulation.token(item.request_id, item.end)) for item in plan.items if item.samples
    }
    for batch in (plain, packed):
        batch.apply(plan)
        batch.apply(plan)  # again, as when a step is repeated
        host, block = batch.gather(plan.items), StepBlock(CPU)
        beside = block.add(np.array([[3, 4]], np.int32)) if batch is packed else None
        laid_out = batch.to_device(host, None if beside is None else batch.lay(host, block))
        check(known, laid_out)
        if beside is not None:
            assert beside.tensor.tolist() == [[3, 4]]
            tensors = (
                laid_out.input_ids,
                laid_out.position_ids,
                laid_out.slots,
                laid_out.sampled_rows,
                laid_out.choice.wanted,
            )
            assert {one.untyped_storage().data_ptr() for one in tensors} == {beside.tensor.untyped_storage().data_ptr()}
        items = laid_out.host.items
        assert laid_out.host.rows.tolist() == [row.index for row in batch.rows(items)]
        batch.resolve(items, batch.rows(items), StepResult(chosen))


def new(name: str, tokens: tuple[int, ...], **sampling: float) -> NewRequest:
    return NewRequest(name, None, tokens, len(tokens), SamplingParams(max_tokens=9, **sampling), (1,))  # type: ignore[arg-type]


def test_a_row_is_free_again_when_its_request_is_gone_and_tells_the_next_one_nothing() -> None:
    batch = batch_of(1)
    batch.apply(StepPlan((StepItem("a", 0, 3, samples=True),), new=(new("a", (5, 6, 7), presence_penalty=1.0),)))
    batch.apply(StepPlan(grown=(Growth("a", 1, (8, 9)),)))
    batch.apply(StepPlan((StepItem("b", 0, 1),), gone=("a",), new=(new("b", (4,), presence_penalty=1.0),)))
    row = batch.row("b")
    assert batch.tokens(row).tolist() == [4]
    assert batch.tables[row.index].tolist()[:4] == [1, 0, 0, 0]
    assert row.occurrences is not None
    assert row.occurrences.token_ids.tolist() == [4]
    with pytest.raises(KeyError):
        batch.row("a")


def test_what_occurred_is_counted_once_however_often_a_step_is_repeated() -> None:
    batch = batch_of(1)
    batch.apply(StepPlan(new=(new("a", (5, 6), frequency_penalty=1.0),)))
    row = batch.row("a")
    assert row.occurrences is not None
    for number, token in enumerate((5, 5, 7)):
        for _ in range(2):
            items = (StepItem("a", 1 + number, 1, samples=True),)
            batch.resolve(items, [row], StepResult({"a": Sampled(token)}))
            row.occurrences.see(batch.tokens(row))
    assert dict(zip(row.occurrences.token_ids.tolist(), row.occurrences.counts.tolist(), strict=True)) == {
        5: 2,
        6: 0,
        7: 1,
    }


def test_what_a_step_chose_for_a_row_that_is_gone_changes_no_other_one() -> None:
    """Neither that of who has its place now, nor that of another request of its name."""
    batch, item = batch_of(1), StepItem("a", 0, 2, samples=True)
    batch.apply(StepPlan((item,), new=(new("a", (5, 6)),)))
    rows = batch.rows((item,))
    for name in ("b", "a"):
        batch.apply(StepPlan(gone=("a", "b"), new=(new(name, (7, 7, 7, 7)),)))
        batch.resolve((item,), rows, StepResult({"a": Sampled(8)}))
        row = batch.row(name)
        assert row.index == rows[0].index
        assert batch.tokens(row).tolist() == [7, 7, 7, 7]


def test_a_token_that_is_not_known_here_is_read_where_it_was_chosen() -> None:
    batch = InputBatch(3, MAX_MODEL_LEN * KV_BLOCK_TOKENS, CPU, ahead=True)
    items = [StepItem(name, 0, 2, samples=True) for name in ("a", "b", "c")]
    batch.apply(StepPlan(tuple(items), new=tuple(new(name, (5, 6)) for name in ("a", "b", "c"))))
    assert not batch.gather(items).is_ahead
    is_finite = torch.tensor([True, False, True])
    batch.note(items, Choice([], torch.tensor([20, 21, 22]), is_finite))
    batch.resolve(items[2:], batch.rows(items[2:]), StepResult({"c": Sampled(22)}))
    following = [StepItem(name, 2, 1, samples=True) for name in ("c", "b", "a")]
    host = batch.gather(following)
    assert host.is_ahead
    assert host.token_ids.min() < 0
    assert batch.to_device(host).input_ids.tolist() == [[22, 0, 20]]
    assert InputBatch(3, MAX_MODEL_LEN, CPU).last_tokens is None, "a CPU that waits needs none"


def test_draft_tokens_are_read_here_also_where_steps_go_ahead() -> None:
    batch = InputBatch(2, MAX_MODEL_LEN, CPU, ahead=True)
    drafted = StepItem("a", 2, 4, samples=True, decode=True, draft_token_ids=(7, 8, 9))
    batch.apply(StepPlan((drafted,), new=(new("a", (5, 6, 1)), new("b", (5, 6)))))
    host = batch.gather((drafted, StepItem("b", 2, 1, samples=True, decode=True)))
    assert host.token_ids[:4].tolist() == [1, 7, 8, 9]
    assert host.is_ahead, "the token of the other one is not known yet"
    assert host.token_ids[4] == batch.row("b").index - 2, "its row, less the number of rows"


def test_draft_tokens_are_computed_and_forgotten_where_they_were_wrong() -> None:
    batch = batch_of(1)
    drafted = StepItem("a", 2, 4, samples=True, decode=True, draft_token_ids=(7, 8, 9))
    batch.apply(StepPlan((drafted,), new=(new("a", (5, 6, 1)),)))
    host = batch.gather((drafted,))
    assert host.token_ids.tolist() == [1, 7, 8, 9]
    assert host.positions.tolist() == [2, 3, 4, 5]
    assert host.logit_rows.tolist() == [0, 1, 2, 3]
    row = batch.row("a")
    assert batch.tokens(row).tolist() == [5, 6, 1], "nobody knows whether they are right"
    batch.resolve((drafted,), [row], StepResult({"a": Sampled(7)}, further={"a": (Sampled(4),)}))
    assert batch.tokens(row).tolist() == [5, 6, 1, 7, 4]
    host = batch.gather((StepItem("a", 4, 1, samples=True, decode=True),))
    assert (host.token_ids.tolist(), host.positions.tolist()) == ([4], [4])
