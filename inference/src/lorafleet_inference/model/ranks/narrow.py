"""A rank's part of a model that transformers' code computes: the same modules, each with fewer outputs or inputs.

That code takes the number of heads from the width of what queries, keys and values give, as transformers' own plans need it to. What
comes out of a row-parallel module is summed behind its hooks, so LoRA's part of the partial sum is in it.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from lorafleet_inference.model import experts
from lorafleet_inference.model.decoder import Decoder
from lorafleet_inference.model.decoder.linear import Total
from lorafleet_inference.model.decoder.words import Gather, Whole, WordEmbedding, WordHead
from lorafleet_inference.model.ranks.norms import is_norm_of_heads, join_means, why_not_norm
from lorafleet_inference.model.ranks.split import Shard

_ATTENTION = ("self_attn", "attention")


def head_width(model: PreTrainedModel, shard: Shard) -> int | None:
    """Return how wide a head of the queries of a whole model is; None: they have no layer of their own."""
    return next((one.out_features // shard.num_heads for name, one in _linears(model) if _own(name) == "q_proj"), None)


def why_not_narrow(model: PreTrainedModel, shard: Shard) -> str | None:
    """Return why no rank's part can be made of a whole model, by its modules; None: it can."""
    width = head_width(model, shard)
    for name, module in model.named_modules():
        why = _why_not(name, module, shard, width) or _why_not_together(name, module, shard)
        if why is not None:
            return why
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if type(head) is not torch.nn.Linear or not isinstance(embedding, torch.nn.Embedding):
        return "its embedding or output head is no plain layer"
    return None


def _why_not(name: str, module: torch.nn.Module, shard: Shard, width: int | None) -> str | None:
    own, split = _own(name), shard.split_of(name)
    is_experts = experts.can_adapt(module)
    if own == "experts" and not is_experts:
        return f"the experts of {name} are not stacked as others are"
    if is_norm_of_heads(name):
        return why_not_norm(name, module, shard, width) if shard.splits_heads else None
    if split is not None and type(module) is not torch.nn.Linear:
        return f"{name} is a {type(module).__name__}, and no plain linear layer"
    if own in _ATTENTION and next(module.parameters(recurse=False), None) is not None:
        return f"{name} has parameters of its own"
    try:
        if split is not None and isinstance(module, torch.nn.Linear):
            shard.cut(name, (module.out_features, module.in_features))
        for key in (experts.UP, experts.DOWN) if is_experts else ():
            shard.cut(f"{name}.{key}", getattr(module, key).shape[1:])
    except ValueError as error:
        return f"{name} has other widths than its heads or ranks: {error}"
    return None


def _why_not_together(name: str, module: torch.nn.Module, shard: Shard) -> str | None:
    """Return why the linear layers of a module cannot be split: outputs that are a part need inputs that are, there."""
    splits = {key: shard.split_of(key) for key, child in module.named_children() if type(child) is torch.nn.Linear}
    found = {split.along for split in splits.values() if split is not None}
    if len(found) == 1:
        keys = ", ".join(key for key, split in splits.items() if split is not None)
        return f"of the layers in {name}, only the {found.pop().value} of {keys} would be split"
    return None


def narrow(model: PreTrainedModel, shard: Shard) -> None:
    """Give each module of a whole model the shape of the rank's part; it has no weights that are worth anything yet."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and shard.split_of(name) is not None:
            kept = shard.cut(name, (module.out_features, module.in_features)).kept
            module.out_features, module.in_features = kept
            _reshape(module, "weight", kept)
            _reshape(module, "bias", kept[:1])
        elif is_norm_of_heads(name) and shard.split_of(name) is not None:
            _reshape(module, "weight", tuple(shard.weight(name, module.weight).shape))
        elif experts.can_adapt(module):
            for key in (experts.UP, experts.DOWN):
                count, *shape = getattr(module, key).shape
                _reshape(module, key, (count, *shard.cut(f"{name}.{key}", (shape[0], shape[1])).kept))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    assert isinstance(head, torch.nn.Linear)
    is_tied, rows = head.weight is embedding.weight, shard.words.num_held
    embedding.num_embeddings, embedding.padding_idx = rows, None  # a token that may be another rank's
    head.out_features = rows
    _reshape(embedding, "weight", (rows, embedding.embedding_dim))
    _reshape(head, "weight", (rows, head.in_features))
    _reshape(head, "bias", (rows,))
    if is_tied:
        head.weight = embedding.weight


def _reshape(module: torch.nn.Module, name: str, shape: tuple[int, ...]) -> None:
    before = module._parameters.get(name)  # noqa: SLF001
    if before is not None:
        made = torch.empty(shape, dtype=before.dtype, device=before.device)
        setattr(module, name, torch.nn.Parameter(made, requires_grad=before.requires_grad))


def part_of_kind(kind: type[PreTrainedModel], shard: Shard) -> type[PreTrainedModel]:
    """Return a class of models from which transformers' loader makes the rank's part of a model of `kind`."""

    class Part(kind):
        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            narrow(self, shard)
            self.__class__ = kind

    Part.__name__, Part.__qualname__, Part.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Part


def split_words(
    model: PreTrainedModel, shard: Shard, embedding: Whole, head: Whole, bias: Callable[[], torch.Tensor]
) -> None:
    """As `Decoder.split_words`. `bias`: reads the whole bias of the head, where it has one."""
    words = WordEmbedding(model.get_input_embeddings(), shard.words, embedding)
    outputs = model.get_output_embeddings()
    assert isinstance(outputs, torch.nn.Linear)
    whole = None if outputs.bias is None else bias().to(outputs.weight.device)
    model.set_input_embeddings(words)
    model.set_output_embeddings(WordHead(outputs, shard.words, head, whole))


def work_in(model: PreTrainedModel | Decoder, shard: Shard, total: Total, gather: Gather) -> None:
    """Have `total` sum what the ranks of a model give, each of which has a part of each layer, and `gather` the logits."""
    if isinstance(model, Decoder):
        model.work_in(total, gather)
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, WordEmbedding), "nothing else is a rank's"
    assert isinstance(head, WordHead)
    embedding.total, head.gather = total, gather
    for name, module in model.named_modules():
        is_row = isinstance(module, torch.nn.Linear) and shard.is_partial(name)
        if is_row or (experts.can_adapt(module) and shard.is_partial(f"{name}.{experts.DOWN}")):
            _sum(module, total)
        elif is_norm_of_heads(name) and shard.split_of(name) is not None:
            join_means(module, total, shard.size)


class _Summed(torch.nn.Module):
    """Sums over the ranks what a module gives and its hooks add. One without `total` does not, as an adapter's own copy."""

    total: Total | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute, then sum."""
        partial = super().__call__(*args, **kwargs)
        return partial if self.total is None else self.total(partial)


def _sum(module: torch.nn.Module, total: Total) -> None:
    kind = type(module)
    module.__class__ = type(f"Summed{kind.__name__}", (_Summed, kind), {})
    module.total = total  # type: ignore[assignment]


def _linears(model: torch.nn.Module) -> list[tuple[str, torch.nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def _own(name: str) -> str:
    return name.rsplit(".", 1)[-1]
