"""What some adapters hold beside rows of A and B: DoRA's norms, biases, the head, the embedding, copies of whole modules.

All of it comes to the output y of one module, after LoRA's rows were added: `y = own module's output`, then
`y += B A x` for head and embedding, then `y = scale * y + offset`. Few adapters have any of it, so it lies behind their rows in
pages of their own (`adapters/extra_tensors.py`), and costs nothing where it is not used.

An adapter's embedding and head may have other rows than the base's, and more or fewer: the base's embedding then sees ids
that it knows, the adapter's own the true ones, and the logits get as many columns as the widest adapter of the step has. What
lies beyond a row's own width is out (-inf), which is said behind all that the model does to its logits.
Axes: T tokens of the step, r ranks, k own rows.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from lorafleet_inference.adapters.extra_tensors import lay
from lorafleet_inference.device.devices import device_at
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.model import experts, routers
from lorafleet_inference.model.arena import HostPages
from lorafleet_inference.model.batch import Segment
from lorafleet_inference.model.decoder.linear import Part
from lorafleet_inference.model.experts import ExpertChange, ExpertLora
from lorafleet_inference.model.host_adapter import HostTensor, copies
from lorafleet_inference.model.laid_tensor import LaidTensor, runs_in
from lorafleet_inference.model.transfer import on_device


@dataclass(frozen=True, slots=True, kw_only=True)
class _Laid:
    """What an adapter changes in one module, on the device; on the host it is an `Extra` of `extras_files.py`."""

    a: LaidTensor | None = None
    b: LaidTensor | None = None
    scale: LaidTensor | None = None
    offset: LaidTensor | None = None
    weight: LaidTensor | None = None
    token_ids: LaidTensor | None = None
    token_rows: LaidTensor | None = None
    bias: LaidTensor | None = None
    experts: ExpertLora | None = None
    twin: torch.nn.Module | None = None
    """The module with its own weight and bias, where they lie in one piece each."""


@dataclass(frozen=True, slots=True)
class _Change:
    begin: int
    end: int
    extra: _Laid


class ExtrasBank:
    """Extras in the pool, and the hooks that apply them; a module has one from the first adapter that changes it on."""

    def __init__(self, model: PreTrainedModel, pool: torch.Tensor) -> None:
        """pool [pages, elements of a page], contiguous, in the model's dtype."""
        self._modules: dict[str, torch.nn.Module] = dict(model.named_modules())
        self._pool = pool
        self._resident: dict[AdapterKey, dict[str, _Laid]] = {}
        self._hooked: set[str] = set()
        self._changes: dict[str, list[_Change]] = {}
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        self._head = next((name for name, module in self._modules.items() if module is head), None)
        self._embedding = next((name for name, module in self._modules.items() if module is embedding), None)
        self._vocabularies: dict[AdapterKey, Vocabulary] = {}
        """Of adapters with other rows than the base's."""
        self._input_ids: torch.Tensor | None = None
        """[1, T] of the step, where an adapter knows ids that the base does not."""
        self._widths: list[tuple[Segment, int]] = []
        """Rows of the logits with another width than the base's."""

    def install(
        self,
        key: AdapterKey,
        pages: Sequence[int],
        tensors: Sequence[HostTensor],
        host: HostPages,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """Copy an adapter's extras from the host to pages that no step reads. `vocabulary`: where it is not the base's.

        `tensors`: those that were reckoned with when the pages were counted; it need not have all of them.
        """
        if vocabulary is not None:
            self._vocabularies[key] = vocabulary
        page, device = self._pool.shape[1], device_at(self._pool.device)
        spans = list(lay([one.one for one in tensors], page, runs_in(pages, page)))
        own = [(one, here) for one, here in zip(tensors, spans, strict=True) if one.shape is not None]
        if not own:
            return
        flat = self._pool.view(-1)
        for at, some in copies(host, [(one.one, one.spans, here) for one, here in own], page):
            device.copy(flat[at : at + len(some)], some)
        laid: dict[str, dict[str, LaidTensor]] = {}
        for one, here in own:
            assert one.shape is not None
            made = LaidTensor(self._pool, one.one, here, one.shape, one.dtype)
            laid.setdefault(one.one.module, {})[one.one.part] = made
        self._resident[key] = {name: _laid(self._modules[name], parts) for name, parts in laid.items()}

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter."""
        self._resident.pop(key, None)
        self._vocabularies.pop(key, None)

    def begin_step(
        self, segments: Sequence[Segment], sampled: Sequence[Segment], input_ids: torch.Tensor
    ) -> torch.Tensor:
        """Say which tokens, and which rows of the head, use which adapter in the coming forward pass.

        input_ids [1, T]; returns them as the base's model may see them.
        """
        self.clear()
        if not (self._resident or self._vocabularies):
            return input_ids
        for one in segments:
            self._add(one, lambda name: name != self._head)
        for one in sampled:
            self._add(one, lambda name: name == self._head)
        own = self._vocabularies
        self._widths = [(one, own[one.adapter].num_outputs) for one in sampled if one.adapter in own]
        if all(one.adapter not in own for one in segments):
            return input_ids
        assert self._embedding is not None, "validation takes other rows only where there is a plain embedding"
        embedding = self._modules[self._embedding]
        assert isinstance(embedding, torch.nn.Embedding)
        self._input_ids = input_ids
        return input_ids.clamp(max=embedding.num_embeddings - 1)

    def clear(self) -> None:
        """Forget the last step: the coming one changes nothing here."""
        self._changes, self._input_ids, self._widths = {}, None, []
        experts.changes.clear()

    def changes(self, keys: Iterable[AdapterKey | None]) -> bool:
        """Whether one of these adapters has anything here."""
        return any(key in self._resident or key in self._vocabularies for key in keys if key is not None)

    def num_outputs(self, key: AdapterKey | None, base: int) -> int:
        """Return how many tokens an adapter can choose; `base`: how many the base can."""
        own = None if key is None else self._vocabularies.get(key)
        return base if own is None else own.num_outputs

    def end_step(self, logits: torch.Tensor, base: int) -> torch.Tensor:
        """logits [rows, width] of the step; returns them without what lies beyond each row's own width."""
        if not self._widths:
            return logits
        widths = torch.full((len(logits),), base)
        for segment, width in self._widths:
            widths[segment.begin : segment.end] = width
        beyond = torch.arange(logits.shape[-1], device=logits.device) >= on_device(widths, logits.device)[:, None]
        return logits.masked_fill(beyond, float("-inf"))

    def _add(self, segment: Segment, wanted: Callable[[str], bool]) -> None:
        for name, extra in self._resident.get(segment.adapter, {}).items():
            if extra.experts is not None:
                if wanted(name):
                    change_of_experts = ExpertChange(segment.begin, segment.end, extra.experts)
                    experts.changes.setdefault(self._modules[name], []).append(change_of_experts)
            elif wanted(name):
                self._changes.setdefault(name, []).append(_Change(segment.begin, segment.end, extra))
                self._hook(name)

    def _hook(self, name: str) -> None:
        if name in self._hooked:
            return
        self._hooked.add(name)

        module = self._modules[name]

        def apply(x: torch.Tensor, y: torch.Tensor) -> None:
            for change in self._changes.get(name, ()):
                _apply(module, change, x, y)

        def of_embedding(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            apply(args[0] if self._input_ids is None else self._input_ids, output)

        def of_head(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            widest = max((width for _, width in self._widths), default=0)
            if widest > output.shape[-1]:
                output = F.pad(output, (0, widest - output.shape[-1]))
            apply(args[0], output)
            return output

        def of_other(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = args[0]
            if isinstance(module, torch.nn.Linear) and x.dim() > 3:  # latents of attention, [1, 1, T, width]
                x, output = x.reshape(-1, x.shape[-1]), output.view(-1, output.shape[-1])
            apply(x, output)

        if routers.can_adapt(module):
            routers.adapt(module, apply, lambda: name in self._changes)
        elif name == self._embedding:
            module.register_forward_hook(of_embedding)
        elif name == self._head:
            module.register_forward_hook(of_head)
        else:
            module.register_forward_hook(of_other)


def _laid(module: torch.nn.Module, parts: Mapping[str, LaidTensor]) -> _Laid:
    of_experts = [parts.get(name) for name in ("up_a", "up_b", "down_a", "down_b")]
    if any(one is not None for one in of_experts):
        return _Laid(experts=ExpertLora(*of_experts))
    weight, bias, twin = parts.get("weight"), parts.get("bias"), None
    if weight is not None and weight.is_in_one_piece and (bias is None or bias.is_in_one_piece):
        twin = _twin(module, weight.whole(), None if bias is None else bias.whole())
    return _Laid(
        a=parts.get("a"),
        b=parts.get("b"),
        scale=parts.get("scale"),
        offset=parts.get("offset"),
        weight=weight,
        token_ids=parts.get("token_ids"),
        token_rows=parts.get("token_rows"),
        bias=bias,
        twin=twin,
    )


def _twin(module: torch.nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Module:
    """Return the module with the adapter's own parameters in place of the base's, and without hooks."""
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)  # noqa: SLF001  a copy shares them with the base's
    twin._forward_hooks = OrderedDict()  # noqa: SLF001
    twin._forward_pre_hooks = OrderedDict()  # noqa: SLF001
    vars(twin).pop("forward", None)  # a faster one, made for the base's weight
    vars(twin).pop("total", None)  # it is the module's output that is summed over ranks, with this in it
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            twin._parameters[name] = torch.nn.Parameter(tensor, requires_grad=False)  # noqa: SLF001
    return twin


def _apply(module: torch.nn.Module, change: _Change, x: torch.Tensor, y: torch.Tensor) -> None:
    """x [1, T, ...] or [T, ...]; y likewise, changed in place."""
    axis = 1 if x.shape[0] == 1 and y.shape[0] == 1 and y.dim() > 2 else 0
    length = change.end - change.begin
    x, out = x.narrow(axis, change.begin, length), y.narrow(axis, change.begin, length)
    extra = change.extra
    if extra.twin is not None:
        own = extra.twin(x)
        out[..., : own.shape[-1]] = own
    elif extra.weight is not None:
        _compute_in_pieces(module, extra.weight, extra.bias, x, out)
    if extra.token_ids is not None and extra.token_rows is not None:
        _replace_rows(module, extra.token_ids.whole(), extra.token_rows, x, out)
    if extra.a is not None and extra.b is not None:
        if isinstance(module, torch.nn.Embedding):
            out += _scaled(module, extra.b.times(extra.a.embedding(x)))
        else:
            added = extra.b.times(extra.a.linear(x))
            out[..., : added.shape[-1]] += added
    if extra.scale is not None:
        out[..., : len(extra.scale)] *= extra.scale.whole()
    if extra.offset is not None:
        out[..., : len(extra.offset)] += extra.offset.whole()


def _compute_in_pieces(
    module: torch.nn.Module, weight: LaidTensor, own_bias: LaidTensor | None, x: torch.Tensor, out: torch.Tensor
) -> None:
    """Compute a module with the adapter's own weight, which lies in several pieces, and its own bias, else the base's."""
    bias = None if own_bias is None else own_bias.whole()
    # what transformers makes of such a module may be more than its product
    is_plain = hasattr(module, "embed_scale") or not type(module).__module__.startswith("transformers.")
    if is_plain and isinstance(module, torch.nn.Embedding):
        out.copy_(_scaled(module, weight.embedding(x)))
        return
    if is_plain and isinstance(module, torch.nn.Linear | Part):
        base = module.bias
        weight.linear(x, out[..., : len(weight)], base if bias is None and isinstance(base, torch.Tensor) else bias)
        return
    own = _twin(module, weight.whole(), bias)(x)
    out[..., : own.shape[-1]] = own


def _replace_rows(
    module: torch.nn.Module, token_ids: torch.Tensor, rows: LaidTensor, x: torch.Tensor, out: torch.Tensor
) -> None:
    """Put own rows in the place of the base's: of an embedding for the tokens x, of a head in the columns of out."""
    if isinstance(module, torch.nn.Embedding):
        place = torch.searchsorted(token_ids, x).clamp_(max=len(token_ids) - 1)
        is_own = (token_ids[place] == x)[..., None]
        torch.where(is_own, _scaled(module, rows.embedding(place)), out, out=out)
        return
    columns = rows.linear(x)
    bias = module.bias
    if isinstance(bias, torch.Tensor):
        known = (token_ids < len(bias)).to(bias.dtype)
        columns += bias[token_ids.clamp(max=len(bias) - 1)] * known
    out[..., token_ids] = columns


def _scaled(module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """What an embedding does to its rows."""
    scale = getattr(module, "embed_scale", None)
    return rows if scale is None else rows * scale.to(rows.dtype)
