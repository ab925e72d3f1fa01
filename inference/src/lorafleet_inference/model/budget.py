"""Of a model and a device: how many requests fit, and the least time that their steps take."""

from collections.abc import Iterator
from dataclasses import dataclass

from lorafleet_common.errors import ConfigError
from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.cards import Card
from lorafleet_inference.config import KV_BLOCK_TOKENS, KvCacheDtype
from lorafleet_inference.kernels.few_tokens import MAX_GROUPED_TOKENS, MAX_TOKENS
from lorafleet_inference.model.dry_run import ModelSize
from lorafleet_inference.model.graph_rooms import captured_bytes, record_bytes
from lorafleet_inference.model.sizing import (
    GRAPH_BYTES,
    DeviceMemory,
    kv_block_bytes,
    kv_token_bytes,
    num_blocks_for,
)

DRIVER_BYTES = 600 << 20
"""What CUDA's context and loaded kernels take of a device, about."""
BATCHES = (1, 8, 32, 128, 256)
"""Sizes of steps that are shown, as far as they fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a pod shall serve at the same time."""

    num_adapters: int
    """In device memory."""
    rank: int
    """Of each."""
    target_modules: tuple[str, ...] | None = None
    """Last name components of the modules that each changes; None: all linear modules."""
    context: int
    """Tokens of each request, prompt and answer."""
    max_requests: int
    """That the pod runs at the same time, at most."""
    kv_dtype: KvCacheDtype = "auto"
    """How keys and values are kept."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time of a step of one token for each request."""

    num_requests: int
    num_adapters: int
    """In the step."""
    num_bytes: int
    """That it has to read."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Budget:
    """What fits."""

    memory: DeviceMemory
    adapter_bytes: int
    """Of each adapter in device memory."""
    num_rank_pages: int
    kv_token_bytes: int
    """Of the draft model's KV too, where there is one."""
    num_kv_tokens: int
    num_requests: int
    """Of the context that was asked for, at the same time."""
    floors: tuple[Floor, ...]
    """Of the base alone."""
    draft_bytes: int = 0
    """Of the weights, those of the draft model."""


def budget(size: ModelSize, card: Card, wish: Wish, draft: ModelSize | None = None) -> Budget:
    """Return what fits of a wish; nothing of it fits where `num_requests` is 0. `draft`: a model that proposes tokens.

    Raises:
        ConfigError: the model has no linear module of a name of `target_modules`.
    """
    layout, modules = RowLayout.of(size.facts), _modules(size, wish)
    page_bytes, each = layout.page * size.itemsize, layout.num_pages(wish.rank, modules)
    # a pool holds one adapter of the largest rank on all modules at least
    num_pages = max(wish.num_adapters * each, layout.num_pages(wish.rank))
    draft_bytes = 0 if draft is None else draft.weights
    memory = DeviceMemory(
        total=card.memory_bytes,
        other=DRIVER_BYTES,
        weights=size.weights + draft_bytes,
        adapters=num_pages * page_bytes,
        activations=size.activations,
        graphs=_captured_bytes(size, wish),
    )
    block_bytes = kv_block_bytes(size.shapes, size.itemsize, wish.kv_dtype)
    if draft is not None:
        block_bytes += kv_block_bytes(draft.shapes, draft.itemsize, wish.kv_dtype)
    num_blocks = max(0, memory.kv_cache // block_bytes)
    num_requests = min(wish.max_requests, num_blocks // num_blocks_for(wish.context))
    return Budget(
        memory,
        adapter_bytes=each * page_bytes,
        num_rank_pages=num_pages,
        kv_token_bytes=block_bytes // KV_BLOCK_TOKENS,
        num_kv_tokens=num_blocks * KV_BLOCK_TOKENS,
        num_requests=num_requests,
        floors=tuple(_floors(size, card, wish, num_requests)),
        draft_bytes=draft_bytes,
    )


def _captured_bytes(size: ModelSize, wish: Wish) -> int:
    if size.num_ranks > 1:
        return 0
    return captured_bytes(
        max_requests=wish.max_requests,
        max_tokens=size.max_batch_tokens,
        max_model_len=wish.context,
        logit_bytes=size.facts.vocab_size * size.itemsize,
        activations=size.layer_activations,
        graph_bytes=GRAPH_BYTES,
        item_bytes=record_bytes(len(size.facts.modules), wish.rank),
        has_sides=bool(size.facts.side_modules or size.facts.experts),
        has_affine=True,
    )


def _modules(size: ModelSize, wish: Wish) -> list[str]:
    names = [module.name for module in size.facts.modules]
    if wish.target_modules is None:
        return names
    known = {name.rsplit(".", 1)[-1] for name in names}
    for target in wish.target_modules:
        if target not in known:
            raise ConfigError(
                "--target-modules", f"the model has no linear module {target}; it has {', '.join(sorted(known))}"
            )
    return [name for name in names if name.rsplit(".", 1)[-1] in wish.target_modules]


def _floors(size: ModelSize, card: Card, wish: Wish, num_requests: int) -> Iterator[Floor]:
    layout = RowLayout.of(size.facts)
    places = [layout.places[layout.index[name]] for name in _modules(size, wish)]
    rank_bytes = sum(place.in_width + place.out_width for place in places) * size.itemsize
    for batch in sorted({min(batch, num_requests) for batch in BATCHES} - {0}):
        num_adapters = min(batch, wish.num_adapters)
        read = weights_read(size, batch)
        read += batch * sum(_visible_bytes(size, wish))
        read += num_adapters * wish.rank * rank_bytes
        yield Floor(batch, num_adapters, read, read / card.bytes_per_second)


def _visible_bytes(size: ModelSize, wish: Wish) -> Iterator[int]:
    for shape in size.shapes:
        tokens = min(wish.context, shape.sliding_window or wish.context)
        yield tokens * kv_token_bytes(shape, size.itemsize, wish.kv_dtype)


def weights_read(size: ModelSize, num_tokens: int) -> int:
    """Return the bytes that weights have a step of so many tokens move.

    All are read, of experts those that some token is expected to choose. Those that are quantised, and that no kernel
    multiplies by, are then written as they are multiplied, and read again.
    """
    missed = (1 - size.experts_per_token / size.num_experts) ** num_tokens
    of_experts = size.expert_dequantised - (size.expert_multiplied if num_tokens <= MAX_GROUPED_TOKENS else 0)
    of_others = size.dequantised - size.expert_dequantised
    of_others -= size.multiplied - size.expert_multiplied if num_tokens <= MAX_TOKENS else 0
    back = of_others + (1 - missed) * of_experts
    return int(size.weights - size.unread_weights - size.expert_weights * missed + 2 * back)
