"""A model that has shapes and no weights: what it would take, measured before anything is downloaded or a device is there."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lorafleet_inference.config import DtypeChoice, Quantization
from lorafleet_inference.engine.messages import MAX_LOGPROBS, ModelFacts
from lorafleet_inference.engine.planner import MAX_SCORED_TOKENS, num_running
from lorafleet_inference.model import experts
from lorafleet_inference.model.attention import LayerShape, Probe, attending, register
from lorafleet_inference.model.base_files import making_model, read_base_config, read_quantization, refused
from lorafleet_inference.model.checked import attention_of, shapes_of
from lorafleet_inference.model.facts import model_facts
from lorafleet_inference.model.occurrences import Occurrences
from lorafleet_inference.model.quantization.cut import CutError
from lorafleet_inference.model.quantization.loading import make_shapes
from lorafleet_inference.model.quantization.method import Method, QuantizationError
from lorafleet_inference.model.quantization.stacks import StackedWeight
from lorafleet_inference.model.quantization.weight import QuantizedWeight
from lorafleet_inference.model.ranks.checks import config_of_rank, shard_of, unsplit
from lorafleet_inference.model.ranks.narrow import narrow
from lorafleet_inference.model.ranks.rehearsal import check_part
from lorafleet_inference.model.ranks.split import Shard
from lorafleet_inference.model.sampler import Draw, choose, scores_of
from lorafleet_inference.model.sizing import weight_bytes
from lorafleet_inference.model.warm_up import CHOOSY


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model by its shapes."""

    facts: ModelFacts
    shapes: tuple[LayerShape, ...]
    """By layer."""
    itemsize: int
    """Bytes of a number of weights, KV and adapters."""
    weights: int
    """Bytes."""
    expert_weights: int
    """Bytes, of these, of experts: a token is multiplied with `experts_per_token` of `num_experts` of them."""
    num_experts: int
    experts_per_token: int
    unread_weights: int
    """Bytes of the embedding where it is no head too: of it only the rows of a step's tokens are read."""
    dequantised: int
    """Bytes that quantised weights take when they are brought back, all of them together."""
    multiplied: int
    """Of these, of weights that a kernel multiplies few tokens by as they are."""
    expert_dequantised: int
    expert_multiplied: int
    """Of both, of experts."""
    quantization: str | None
    """How they are quantised."""
    activations: int
    """Bytes at most beside weights, KV and adapters in a step."""
    layer_activations: int
    """Of these, in the layers: of a step of `max_batch_tokens` tokens."""
    max_batch_tokens: int
    num_ranks: int
    """Among which the model is split; this is a part of it."""


class PeakBytes(TorchDispatchMode):
    """Follows how much memory the tensors that operations make take at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0
        self.peak = 0
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()

    def know(self, tensors: Sequence[torch.Tensor]) -> None:
        """Count these as there before."""
        for tensor in tensors:
            self._seen[tensor.untyped_storage()] = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor):
                self._count(one.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self._now -= size


def model_size(
    folder: Path,
    *,
    dtype: DtypeChoice,
    max_batch_tokens: int,
    max_batch_requests: int,
    quantization: Quantization | None = None,
    num_ranks: int = 1,
) -> ModelSize:
    """Make the model without weights and run its largest step without computing it. `num_ranks`: of one of so many ranks, its part.

    Raises:
        ConfigError: the folder holds no config of a model that can be served, or that can be split among so many ranks.
    """
    register()
    experts.register()
    config = read_base_config(folder)
    method = read_quantization(folder, quantization)
    whole, shard = config, None if num_ranks == 1 else shard_of(config, 0, num_ranks)
    if shard is not None:
        if shard.by_plan:
            check_part(whole, shard)
        config = config_of_rank(config, shard)
    chosen = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    with FakeTensorMode(), torch.inference_mode():
        model = _without_weights(folder, config, method, chosen, whole=whole, shard=shard)
        facts = model_facts(model)
        shapes = shapes_of(model, facts)
        layers = _peak_of(model, min(max_batch_tokens, facts.max_model_len))
    # the first rank gathers those of all
    facts = msgspec.structs.replace(facts, vocab_size=whole.get_text_config().vocab_size)
    num_running_most = num_running(max_batch_requests, max_batch_tokens)
    num_scored = min(MAX_SCORED_TOKENS, facts.max_model_len, max(0, max_batch_tokens - num_running_most))
    with torch.inference_mode():
        choosing = _peak_of_choosing(
            num_running_most, num_scored, facts.vocab_size, chosen, copies=1 if shard is None else 2
        )
    text = config.get_text_config()
    expert_weights = sum(weight_bytes(module) for name, module in model.named_modules() if name.endswith(".experts"))
    num_experts = facts.experts[0].num_experts if facts.experts else 1
    embedding = model.get_input_embeddings()
    quantised = [module for module in model.modules() if isinstance(module, QuantizedWeight)]
    in_experts = [
        weight
        for module in model.modules()
        if isinstance(module, StackedWeight)
        for weight in module.modules()
        if isinstance(weight, QuantizedWeight)
    ]
    dequantised, multiplied = _dequantised(quantised, chosen.itemsize)
    expert_dequantised, expert_multiplied = _dequantised(in_experts, chosen.itemsize)
    return ModelSize(
        facts,
        shapes,
        itemsize=chosen.itemsize,
        weights=weight_bytes(model),
        expert_weights=expert_weights,
        num_experts=num_experts,
        experts_per_token=int(getattr(text, "num_experts_per_tok", None) or num_experts),
        unread_weights=0 if facts.tied_head else weight_bytes(embedding),
        dequantised=dequantised,
        multiplied=multiplied,
        expert_dequantised=expert_dequantised,
        expert_multiplied=expert_multiplied,
        quantization=None if method is None else method.name,
        activations=max(layers, choosing),
        layer_activations=layers,
        max_batch_tokens=min(max_batch_tokens, facts.max_model_len),
        num_ranks=num_ranks,
    )


def _without_weights(
    folder: Path,
    config: PreTrainedConfig,
    method: Method | None,
    dtype: torch.dtype,
    *,
    whole: PreTrainedConfig,
    shard: Shard | None,
) -> PreTrainedModel:
    """Make the model of a config, or a rank's part of the `whole` one, with the quantised layers of a method."""
    with making_model(folder):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            attn_implementation=attention_of(config),
            experts_implementation=experts.NAME if method is None else experts.SIZED,
            dtype=dtype,
        ).eval()
    if shard is not None and shard.by_plan:
        narrow(model, shard)
    if method is not None:
        try:
            _quantise(model, method, whole, shard)
        except QuantizationError as error:
            raise refused(type(model).__name__, str(error)) from error
    return model


def _dequantised(weights: Sequence[QuantizedWeight], itemsize: int) -> tuple[int, int]:
    """Return the bytes that weights take when they are brought back, and of these those that a kernel multiplies by as they are."""
    return itemsize * sum(map(_numel, weights)), itemsize * sum(map(_numel, filter(_has_kernels, weights)))


def _has_kernels(weight: QuantizedWeight) -> bool:
    return weight.layout.has_kernels(weight.shape)


def _numel(weight: QuantizedWeight) -> int:
    return weight.shape[0] * weight.shape[1]


def _quantise(model: PreTrainedModel, method: Method, whole: PreTrainedConfig, shard: Shard | None) -> None:
    """Give a model, or a rank's part of the `whole` one, the quantised layers of a method."""
    if shard is None:
        make_shapes(model, method)
        return
    try:
        with torch.device("meta"):
            of = AutoModelForCausalLM.from_config(whole)
        make_shapes(model, method, of, shard.cut)
    except CutError as error:
        raise unsplit(whole, shard.size, str(error)) from error


def _peak_of(model: PreTrainedModel, num_tokens: int) -> int:
    ids = torch.zeros(1, num_tokens, dtype=torch.int64)
    positions = torch.zeros(1, num_tokens, dtype=torch.int64)
    peak = PeakBytes()
    peak.know([*model.parameters(), *model.buffers(), ids, positions])
    with peak, attending(Probe()):
        model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1)
    return peak.peak


def _peak_of_choosing(num_rows: int, num_scored: int, vocab_size: int, dtype: torch.dtype, *, copies: int) -> int:
    """Return what it takes at most to choose from logits by all that requests can ask for, and to score prompts. `copies`: of them."""
    draw = Draw(CHOOSY, 0, 2, 1, occurrences=Occurrences((0, 0), 1))
    peak = PeakBytes()
    with FakeTensorMode(), peak:
        there = [torch.empty(num_rows + num_scored, vocab_size, dtype=dtype) for _ in range(copies)]
        if num_scored:
            scores_of(there[-1][num_rows:], torch.zeros(num_scored, dtype=torch.int64), MAX_LOGPROBS)
        some = there[-1][torch.arange(num_rows)]
        choose(some, [draw] * num_rows, chooser=_first_tokens)
    return peak.peak


def _first_tokens(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG001
    """Stand for the kernel, which takes no memory."""
    return torch.zeros(len(logits), dtype=torch.int64), torch.ones(len(logits), dtype=torch.bool)
