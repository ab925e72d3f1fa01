"""What some adapters hold beside rows of A and B: DoRA's norms, biases, the head, the embedding, copies of whole modules.

All of it comes to the output y of one module, after LoRA's rows were added: `y = own module's output`, then
`y += B A x` for head and embedding, then `y = scale * y + offset`. Few adapters have any of it, so it lies beside the
pool of rows, in tensors of its own, and costs nothing where it is not used.

An adapter's embedding and head may have other rows than the base's, and more or fewer: the base's embedding then sees ids
that it knows, the adapter's own the true ones, and the logits get as many columns as the widest adapter of the step has. What
lies beyond a row's own width is out (-inf), which is said behind all that the model does to its logits.
Axes: T tokens of the step, r ranks, k own rows.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.kernels.packed import plain_weight
from lorafleet_inference.model import experts, routers
from lorafleet_inference.model.batch import Segment
from lorafleet_inference.model.experts import ExpertChange, ExpertLora
from lorafleet_inference.model.transfer import on_device


@dataclass(slots=True)
class Extra:
    """What an adapter changes in one module beside rows of A and B. On the host or on the device."""

    a: torch.Tensor | None = None
    """[r, in] of the head; [vocabulary, r] of the embedding."""
    b: torch.Tensor | None = None
    """[r, out], times the site's scale."""
    scale: torch.Tensor | None = None
    """[out]"""
    offset: torch.Tensor | None = None
    """[out]"""
    weight: torch.Tensor | None = None
    """Of the module's own copy; of embedding and head with any number of rows."""
    token_ids: torch.Tensor | None = None
    """[k] int64, growing: tokens of which embedding or head has a row of its own."""
    token_rows: torch.Tensor | None = None
    """[k, hidden]"""
    bias: torch.Tensor | None = None
    up_a: torch.Tensor | None = None
    """Of fused experts, as in `ExpertLora`."""
    up_b: torch.Tensor | None = None
    down_a: torch.Tensor | None = None
    down_b: torch.Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return all(getattr(self, one.name) is None for one in fields(self))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Extra":
        """Return what comes of its tensors."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return Extra(**{name: change(tensor) for name, tensor in values.items() if tensor is not None})


Extras = Mapping[str, Extra]
"""By module name."""


@dataclass(frozen=True, slots=True)
class _Change:
    begin: int
    end: int
    extra: Extra
    twin: torch.nn.Module | None


class ExtrasBank:
    """Extras on the device, and the hooks that apply them; a module has one from the first adapter that changes it on."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules: dict[str, torch.nn.Module] = dict(model.named_modules())
        self._device = next(model.parameters()).device
        self._resident: dict[AdapterKey, dict[str, tuple[Extra, torch.nn.Module | None]]] = {}
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

    def install(self, key: AdapterKey, extras: Extras, vocabulary: Vocabulary | None = None) -> None:
        """Copy an adapter's extras to the device; safe beside a running step. `vocabulary`: where it is not the base's."""
        if vocabulary is not None:
            self._vocabularies[key] = vocabulary
        if extras:
            here = {name: extra.map(lambda tensor: tensor.to(self._device)) for name, extra in extras.items()}
            self._resident[key] = {name: (extra, _twin(self._modules[name], extra)) for name, extra in here.items()}

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
        for name, (extra, twin) in self._resident.get(segment.adapter, {}).items():
            if extra.up_a is not None or extra.down_a is not None:
                if wanted(name):
                    lora = ExpertLora(extra.up_a, extra.up_b, extra.down_a, extra.down_b)
                    change_of_experts = ExpertChange(segment.begin, segment.end, lora)
                    experts.changes.setdefault(self._modules[name], []).append(change_of_experts)
            elif wanted(name):
                change = _Change(segment.begin, segment.end, extra, twin)
                self._changes.setdefault(name, []).append(change)
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

        if routers.can_adapt(module):
            routers.adapt(module, apply, lambda: name in self._changes)
        elif name == self._embedding:
            module.register_forward_hook(of_embedding)
        elif name == self._head:
            module.register_forward_hook(of_head)
        else:
            module.register_forward_hook(lambda _, args, output: apply(args[0], output))


def _twin(module: torch.nn.Module, extra: Extra) -> torch.nn.Module | None:
    """Return the module with the adapter's own parameters in place of the base's, and without hooks."""
    if extra.weight is None and extra.bias is None:
        return None
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)  # noqa: SLF001  a copy shares them with the base's
    twin._forward_hooks = OrderedDict()  # noqa: SLF001
    twin._forward_pre_hooks = OrderedDict()  # noqa: SLF001
    vars(twin).pop("forward", None)  # a faster one, made for the base's weight
    vars(twin).pop("total", None)  # it is the module's output that is summed over ranks, with this in it
    for name, tensor in (
        ("weight", plain_weight(module) if extra.weight is None else extra.weight),
        ("bias", extra.bias),
    ):
        if tensor is not None:
            twin._parameters[name] = torch.nn.Parameter(tensor, requires_grad=False)  # noqa: SLF001
    return twin


def _apply(module: torch.nn.Module, change: _Change, x: torch.Tensor, y: torch.Tensor) -> None:
    """x [1, T, ...] or [T, ...]; y likewise, changed in place."""
    axis = 1 if x.shape[0] == 1 and y.shape[0] == 1 and y.dim() > 2 else 0
    length = change.end - change.begin
    x, out = x.narrow(axis, change.begin, length), y.narrow(axis, change.begin, length)
    extra = change.extra
    if change.twin is not None:
        own = change.twin(x)
        out[..., : own.shape[-1]] = own
    if extra.token_ids is not None and extra.token_rows is not None:
        _replace_rows(module, extra.token_ids, extra.token_rows, x, out)
    if extra.a is not None and extra.b is not None:
        if isinstance(module, torch.nn.Embedding):
            out += _scaled(module, F.embedding(x, extra.a) @ extra.b)
        else:
            out[..., : extra.b.shape[-1]] += (x @ extra.a.t()) @ extra.b
    if extra.scale is not None:
        out[..., : len(extra.scale)] *= extra.scale
    if extra.offset is not None:
        out[..., : len(extra.offset)] += extra.offset


def _replace_rows(
    module: torch.nn.Module, token_ids: torch.Tensor, rows: torch.Tensor, x: torch.Tensor, out: torch.Tensor
) -> None:
    """Put own rows in the place of the base's: of an embedding for the tokens x, of a head in the columns of out."""
    if isinstance(module, torch.nn.Embedding):
        place = torch.searchsorted(token_ids, x).clamp_(max=len(token_ids) - 1)
        is_own = (token_ids[place] == x)[..., None]
        torch.where(is_own, _scaled(module, F.embedding(place, rows)), out, out=out)
        return
    columns = x @ rows.t()
    bias = module.bias
    if isinstance(bias, torch.Tensor):
        known = (token_ids < len(bias)).to(bias.dtype)
        columns += bias[token_ids.clamp(max=len(bias) - 1)] * known
    out[..., token_ids] = columns


def _scaled(module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """What an embedding does to its rows."""
    scale = getattr(module, "embed_scale", None)
    return rows if scale is None else rows * scale.to(rows.dtype)
