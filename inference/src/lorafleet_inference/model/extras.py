"""What some adapters hold beside rows of A and B: DoRA's norms, biases, the head, the embedding, copies of whole modules.

All of it comes to the output y of one module, after LoRA's rows were added: `y = own module's output`, then
`y += B A x` for head and embedding, then `y = scale * y + offset`. Few adapters have any of it, so it lies beside the
pool of rows, in tensors of its own, and costs nothing where it is not used.
Axes: T tokens of the step, r ranks.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.kernels.packed import plain_weight
from lorafleet_inference.model import experts, routers
from lorafleet_inference.model.batch import Segment
from lorafleet_inference.model.experts import ExpertChange, ExpertLora


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
    """Of the module's own copy, in the shape of the base's."""
    bias: torch.Tensor | None = None
    up_a: torch.Tensor | None = None
    """Of fused experts, as in `ExpertLora`."""
    up_b: torch.Tensor | None = None
    down_a: torch.Tensor | None = None
    down_b: torch.Tensor | None = None

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
        head = model.get_output_embeddings()
        self._head = next((name for name, module in self._modules.items() if module is head), None)

    def install(self, key: AdapterKey, extras: Extras) -> None:
        """Copy an adapter's extras to the device; safe beside a running step."""
        if extras:
            here = {name: extra.map(lambda tensor: tensor.to(self._device)) for name, extra in extras.items()}
            self._resident[key] = {name: (extra, _twin(self._modules[name], extra)) for name, extra in here.items()}

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter."""
        self._resident.pop(key, None)

    def begin_step(self, segments: Sequence[Segment], sampled: Sequence[Segment]) -> None:
        """Say which tokens, and which rows of the head, use which adapter in the coming forward pass."""
        self._changes = {}
        experts.changes.clear()
        if not self._resident:
            return
        for one in segments:
            self._add(one, lambda name: name != self._head)
        for one in sampled:
            self._add(one, lambda name: name == self._head)

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

        if routers.can_adapt(module):
            routers.adapt(module, apply, lambda: name in self._changes)
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
        out.copy_(change.twin(x))
    if extra.a is not None and extra.b is not None:
        if isinstance(module, torch.nn.Embedding):
            delta = F.embedding(x, extra.a) @ extra.b
            scale = getattr(module, "embed_scale", None)
            out += delta if scale is None else delta * scale.to(delta.dtype)
        else:
            out += (x @ extra.a.t()) @ extra.b
    if extra.scale is not None:
        out *= extra.scale
    if extra.offset is not None:
        out += extra.offset
