"""What lies in pages that are no neighbours is computed as what lies in one piece."""

from pathlib import Path

import pytest
import torch
from support.engines import DrivenEngine
from support.models import adapter_of, model_folder
from torch.nn import functional as F

from lorafleet_inference.adapters.extra_tensors import ExtraTensor, lay, num_pages_of
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.model.laid_tensor import LaidTensor, runs_in

PAGE = 64
PAGES = {"neighbours": range(40), "apart": range(0, 80, 2), "pairs": [at for at in range(80) if at % 4 < 2]}
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


def laid(tensor: torch.Tensor, one: ExtraTensor, pages: list[int]) -> LaidTensor:
    pool = torch.full((80, PAGE), torch.nan)
    assert num_pages_of([one], PAGE) <= len(pages)
    (spans,) = lay([one], PAGE, runs_in(pages, PAGE))
    found = LaidTensor(pool, one, spans, tuple(tensor.shape), tensor.dtype)
    number, _ = one.rows(PAGE)
    for begin, end, block in found._blocks:
        block.copy_(tensor.reshape(number, -1)[begin:end])
    return found


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize(("num_rows", "width"), [(3, 16), (21, 16), (21, 24), (5, 80)])
def test_matrices(kind: str, num_rows: int, width: int) -> None:
    tensor = torch.randn(num_rows, width)
    found = laid(tensor, ExtraTensor("m", "weight", num_rows, width), list(PAGES[kind]))
    assert found.is_in_one_piece is (kind == "neighbours" or num_rows * width <= PAGE)
    assert found.whole().equal(tensor)
    assert len(found) == num_rows
    x, bias = torch.randn(2, width), torch.randn(num_rows)
    torch.testing.assert_close(found.linear(x), F.linear(x, tensor))
    out = torch.zeros(2, num_rows + 1)
    found.linear(x, out[:, :num_rows], bias)
    torch.testing.assert_close(out, F.pad(F.linear(x, tensor, bias), (0, 1)))
    y = torch.randn(2, num_rows)
    torch.testing.assert_close(found.times(y), y @ tensor)
    ids = torch.randint(num_rows, (2, 30))
    assert found.embedding(ids).equal(tensor[ids])


@pytest.mark.parametrize("kind", PAGES)
def test_stacks_and_token_ids(kind: str) -> None:
    stack = torch.randn(5, 7, 12)
    found = laid(stack, ExtraTensor("m", "up_a", 35, 12), list(PAGES[kind]))
    for number, one in enumerate(stack):
        assert found[number].equal(one)
    ids = torch.randint(1 << 40, (50,))
    assert laid(ids, ExtraTensor("m", "token_ids", 50, 2), list(PAGES[kind])).whole().equal(ids)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama", ("head", "embedding", "saved-embedding", "saved-norm-and-head", "more-tokens", "token-rows")),
        ("mixtral", ("experts", "dora")),
        ("gpt2", ("bias", "saved-norm-and-head")),
    ],
)
def test_an_adapter_answers_alike_wherever_it_lies(family: str, kinds: tuple[str, ...]) -> None:
    answers = []
    folders: dict[str, Path] = {kind: adapter_of(family, kind) for kind in kinds}
    for is_apart in (False, True):
        config = EngineConfig(
            model=str(model_folder(family)),
            device="cpu",
            num_threads=1,
            max_rank=16,
            max_resident_adapters=64,
        )
        engine = DrivenEngine(config)
        if is_apart:
            free = engine.engine._residency._free_pages
            free.give(free.take(len(free))[::2])
        engine.register(folders)
        for kind in kinds:
            engine.submit(kind, kind, range(20, 37), GREEDY)
        engine.run_until_ended(kinds)
        answers.append([engine.tokens(kind) for kind in kinds])
        pieces = [
            one.is_in_one_piece
            for extras in engine.runner._adapters.extras._resident.values()
            for extra in extras.values()
            for one in (extra.a, extra.b, extra.weight, extra.token_rows)
            if one is not None
        ]
        assert all(pieces) is not is_apart or not pieces
    assert answers[0] == answers[1]
    assert len({tuple(one) for one in answers[0]}) > 1
