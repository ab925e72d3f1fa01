"""Packed linear layers give the same answers, and their weight can be had back."""

import pytest
import torch

from lorafleet_inference.kernels.packed import can_pack, pack_linears, plain_weight

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 24)
        self.up = torch.nn.Linear(24, 40)
        self.down = torch.nn.Linear(40, 24, bias=False)
        self.head = torch.nn.Linear(24, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(torch.relu(self.up(self.embedding(ids)))))


@torch.inference_mode()
@pytest.mark.parametrize("num_tokens", [0, 1, 3, 64, 130])
def test_same_answers(num_tokens: int) -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    ids = torch.randint(50, (1, num_tokens))
    before = model(ids)
    assert pack_linears(model) == 3
    assert torch.allclose(model(ids), before, atol=1e-5)


@torch.no_grad()
def test_weights_are_given_up_but_not_lost() -> None:
    model = Tied()
    weights = {
        name: module.weight.clone() for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    }
    pack_linears(model)
    assert model.up.weight.is_mkldnn
    assert not model.embedding.weight.is_mkldnn, "the embedding still looks up rows"
    for name, weight in weights.items():
        assert torch.equal(plain_weight(model.get_submodule(name)), weight)


def test_hooks_still_see_input_and_output() -> None:
    model = Tied()
    pack_linears(model)
    seen = []
    model.up.register_forward_hook(lambda _, args, output: seen.append((args[0].shape, output.shape)))
    model(torch.tensor([[1, 2]]))
    assert seen == [((1, 2, 24), (1, 2, 40))]
