"""Gives a model quantised linear layers: transformers reads the other tensors, and what is here reads theirs, straight to their device.

transformers is told by a quantiser of its own kind, registered under our name, which takes the weights away from the layers before anything
is read; what its files hold of them it then does not know.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lorafleet_inference.model import routers
from lorafleet_inference.model.quantization.cut import Cut, layout_of_part, part_of
from lorafleet_inference.model.quantization.linear import QuantizedLinear
from lorafleet_inference.model.quantization.method import FIELD, Method, QuantizationError, Shape, Source
from lorafleet_inference.model.quantization.stacks import Stack, StackedWeight, replace_stack, stacks_of
from lorafleet_inference.model.quantization.weight import QuantizedWeight

_NAME = "lorafleet"
CutOf = Callable[[str, Shape], Cut]
"""Which part of a layer of this name and shape a rank holds."""


class _Read(Protocol):
    def __call__(self, key: str, rows: Sequence[slice] = ()) -> torch.Tensor: ...


@register_quantization_config(_NAME)
class _Marked(QuantizationConfigMixin):
    """What transformers hands from a config to the quantiser."""

    def __init__(self, quant_method: str, modules: list[str], stacks: list[tuple[str, str]]) -> None:
        self.quant_method: Any = quant_method
        self.modules, self.stacks = modules, stacks


@register_quantizer(_NAME)
class _Quantizer(HfQuantizer):
    """Takes weights away before tensors are read, and leaves no trace after."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        for name in self.quantization_config.modules:
            replace(model, name)
        for name, parameter in self.quantization_config.stacks:
            replace_stack(model, name, parameter)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        self.remove_quantization_config(model)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def replace(model: torch.nn.Module, name: str) -> QuantizedLinear:
    """Put a quantised layer without a weight in the place of a linear layer."""
    parent, _, own = name.rpartition(".")
    made = QuantizedLinear(model.get_submodule(name))  # type: ignore[arg-type]
    setattr(model.get_submodule(parent), own, made)
    return made


def can_be_quantised(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """Return the linear layers, by name, that may stand for a quantised one: all but the head and routers."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and module is not head and not routers.is_router(module)
    }


def make_shapes(
    model: PreTrainedModel, method: Method, whole: PreTrainedModel | None = None, cut: CutOf | None = None
) -> None:
    """Give a model without weights the quantised layers that its config speaks of, so that they can be counted.

    `whole` and `cut`: the whole model, and which part of it a rank holds, where `model` is a rank's.

    Raises:
        CutError: its weights cannot be cut so.
        QuantizationError: the method cannot be of this model.
    """

    def empty(name: str, shape: Shape) -> QuantizedWeight | None:
        layout = method.layout(name, shape)
        if layout is None or cut is None:
            return None if layout is None else QuantizedWeight.empty(layout, shape)
        kept = cut(name, shape)
        return QuantizedWeight.empty(layout_of_part(layout, name, kept), kept.kept)

    dtype = model.dtype
    stacks = stacks_of(whole or model)
    for name, module in can_be_quantised(whole or model).items():
        made = empty(name, _shape(module))
        if made is not None:
            replace(model, name).fill(made, dtype)
    for stack in stacks:
        if empty(stack.pieces[0][0], stack.shape) is None:
            continue
        filled = replace_stack(model, stack.module, stack.parameter)
        for pieces in stack.pieces:
            found = [one for one in (empty(name, stack.shape) for name in pieces) if one is not None]
            for one in found:
                one.table, one.order = found[0].table, found[0].order  # alike, as files have them
            filled.append(found, dtype)


@dataclass(frozen=True, slots=True)
class QuantizedFiles:
    """The files of a base whose linear layers are quantised, or shall be."""

    method: Method
    places: Mapping[str, Path]
    """By the name of a tensor, the file that holds it."""
    modules: Mapping[str, Shape]
    """Layers that are quantised, with their shapes in the whole model."""
    head: str | None
    """The output head, where it is quantised: it is brought back to the dtype of the model."""
    head_shape: Shape = (0, 0)
    stacks: tuple[Stack, ...] = ()
    """Experts that are quantised."""

    @property
    def taken(self) -> frozenset[str]:
        """Names of tensors that are read here and not by transformers, or that nobody needs."""
        pieces = [name for stack in self.stacks for name in stack.names]
        every = (*self.modules, *((self.head,) if self.head else ()), *pieces)
        names = {f"{module}.{suffix}" for module in every for suffix in self.method.suffixes}
        return frozenset((names | {f"{name}.bias" for name in pieces}) & self.places.keys())

    def mark(self, config: PreTrainedConfig) -> frozenset[str]:
        """Have transformers take the weights away from these layers; return the tensors that it then may miss, or not know."""
        config.quantization_config = {
            "quant_method": _NAME,
            "modules": list(self.modules),
            "stacks": [(stack.module, stack.parameter) for stack in self.stacks],
        }
        biases = {f"{name}.bias" for name in self.modules} & self.places.keys()
        return self.taken | biases | ({f"{self.head}.weight"} if self.head else set())

    def check_cuts(self, cut: CutOf) -> None:
        """See from the config whether ranks can hold parts of these layers.

        Raises:
            CutError: they cannot; names a layer.
            QuantizationError: the method cannot be of this model.
        """
        pieces = [(name, stack.shape) for stack in self.stacks for name in stack.pieces[0]]
        for name, shape in (*self.modules.items(), *pieces):
            layout = self.method.layout(name, shape)
            if layout is not None:
                layout_of_part(layout, name, cut(name, shape))

    def fill(
        self,
        model: PreTrainedModel,
        device: torch.device,
        dtype: torch.dtype,
        cut: CutOf | None = None,
        rows: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        have_read: Callable[[Iterable[str]], None],
    ) -> None:
        """Read the weights of these layers, of each the part that `cut` says, and of the head that of `rows`.

        `have_read` is told the tensors of each layer.

        Raises:
            CutError: there is no such part.
            QuantizationError: a tensor is missing, of another shape, or holds what is not finite; names it.
        """
        with self._reading(device) as read:
            for name, shape in self.modules.items():
                module = model.get_submodule(name)
                assert isinstance(module, QuantizedLinear)
                module.fill(self._part(name, shape, cut, read, dtype), dtype)
                have_read(f"{name}.{suffix}" for suffix in self.method.suffixes)
            for stack in self.stacks:
                stacked = model.get_submodule(f"{stack.module}.{stack.parameter}")
                assert isinstance(stacked, StackedWeight)
                for pieces in stack.pieces:
                    stacked.append([self._part(name, stack.shape, cut, read, dtype) for name in pieces], dtype)
                have_read(f"{name}.{suffix}" for name in stack.names for suffix in self.method.suffixes)
            if self.head is not None:
                head = model.get_submodule(self.head)
                assert isinstance(head, torch.nn.Linear)
                dense = self._weight(self.head, self.head_shape, read, dtype).dequantized(dtype)
                head.weight = torch.nn.Parameter(dense if rows is None else rows(dense), requires_grad=False)
        self._check_biases(model)

    def read_head(self, dtype: torch.dtype) -> torch.Tensor:
        """Read the output head once more, [vocabulary, hidden] on the CPU."""
        assert self.head is not None
        with self._reading(torch.device("cpu")) as read:
            return self._weight(self.head, self.head_shape, read, dtype).dequantized(dtype)

    def _part(self, name: str, shape: Shape, of: CutOf | None, read: _Read, dtype: torch.dtype) -> QuantizedWeight:
        if of is None:
            return self._weight(name, shape, read, dtype)
        cut = of(name, shape)
        layout = self.method.layout(name, shape)
        is_by_rows = cut.has_all_columns and layout is not None and layout_of_part(layout, name, cut) == layout
        if is_by_rows and not self.method.markers:  # quantised here, and the rank's rows as they would be in the whole
            return self._weight(name, cut.kept, lambda key: read(key, cut.rows), dtype)
        return part_of(self._weight(name, cut.shape, read, dtype), name, cut)

    def _weight(
        self, name: str, shape: Shape, read: Callable[[str], torch.Tensor], dtype: torch.dtype
    ) -> QuantizedWeight:
        names = {suffix: f"{name}.{suffix}" for suffix in self.method.suffixes}
        tensors = {suffix: read(key) for suffix, key in names.items() if key in self.places}
        weight = self.method.read(Source(name, shape, tensors))
        if not torch.isfinite(torch.stack(torch.aminmax(weight.dequantized(dtype)))).all():
            shown = str(dtype).removeprefix("torch.")
            raise QuantizationError(f"the weight of {name} holds values that are not finite in {shown}")
        return weight

    @contextmanager
    def _reading(self, device: torch.device) -> Iterator[_Read]:
        """Give a function that reads a tensor by its name, or some rows of it, with each file opened once."""
        with ExitStack() as stack:
            files: dict[Path, Any] = {}

            def read(key: str, rows: Sequence[slice] = ()) -> torch.Tensor:
                path = self.places[key]
                try:
                    if path not in files:
                        files[path] = stack.enter_context(safe_open(path, framework="pt"))
                    if rows:
                        stored = files[path].get_slice(key)
                        return torch.cat([stored[one] for one in rows]).to(device)
                    return files[path].get_tensor(key).to(device)
                except (SafetensorError, OSError) as error:
                    raise QuantizationError(f"{path.name} cannot be read: {error}") from error

            yield read

    def _check_biases(self, model: PreTrainedModel) -> None:
        """AutoGPTQ writes a bias of zeros for layers that have none; another one would be lost."""
        with self._reading(torch.device("cpu")) as read:
            for name in self.lost_biases(model):
                if read(name).any():
                    raise QuantizationError(f"tensor {name} is not zero, and the layer has no bias")

    def lost_biases(self, model: PreTrainedModel) -> list[str]:
        """Return names of biases in the files that quantised layers do not have."""
        found = [name for name in self.modules if model.get_submodule(name).bias is None]
        found += [name for stack in self.stacks for name in stack.names]
        return [f"{name}.bias" for name in found if f"{name}.bias" in self.places]


def quantized_files(model: PreTrainedModel, method: Method, places: Mapping[str, Path]) -> QuantizedFiles:
    """Return which layers of a model, one without weights will do, the files hold quantised.

    Raises:
        QuantizationError: something is quantised that is no linear layer of the model.
    """
    linears = can_be_quantised(model)
    if not method.markers:
        if not linears:
            raise QuantizationError("it has no linear layers but its head, so that nothing can be quantised")
        modules = [name for name in linears if f"{name}.weight" in places]
        absent = sorted(linears.keys() - set(modules))
        if absent:
            raise QuantizationError(f"the files hold no tensor {absent[0]}.weight, which is to be quantised")
        stacks = stacks_of(model, {key.removesuffix(".weight") for key in places if key.endswith(".weight")})
        lost = [name for stack in stacks for name in stack.names if f"{name}.weight" not in places]
        if lost:
            raise QuantizationError(f"the files hold no tensor {lost[0]}.weight, and stacked experts are not quantised")
        return QuantizedFiles(
            method, places, {name: _shape(linears[name]) for name in modules}, None, stacks=tuple(stacks)
        )
    marked = _marked(places, method.markers)
    if not marked:
        some = ", ".join(sorted(method.markers))
        raise QuantizationError(f"its files hold no quantised layer ({some}), and {FIELD} says {method.name}")
    head = model.get_output_embeddings()
    head_name = next((name for name, module in model.named_modules() if module is head), None)
    found = tuple(stack for stack in stacks_of(model, marked) if not marked.isdisjoint(stack.names))
    in_stacks = {name for stack in found for name in stack.names}
    for name in sorted(marked):
        if name != head_name and name not in linears and name not in in_stacks:
            raise QuantizationError(_why_not(model, name))
    shapes = {name: _shape(module) for name, module in linears.items() if name in marked}
    if head_name not in marked:
        return QuantizedFiles(method, places, shapes, None, stacks=found)
    assert isinstance(head, torch.nn.Linear)
    return QuantizedFiles(method, places, shapes, head_name, _shape(head), found)


def _shape(module: torch.nn.Linear) -> Shape:
    return module.out_features, module.in_features


def _marked(places: Collection[str], markers: Collection[str]) -> set[str]:
    return {key.removesuffix(f".{marker}") for marker in markers for key in places if key.endswith(f".{marker}")}


def _why_not(model: PreTrainedModel, name: str) -> str:
    if ".experts." in f".{name}.":
        return f"its experts are quantised ({name}), and have no gated maps of their own in the files or have biases"
    try:
        kind = type(model.get_submodule(name)).__name__
    except AttributeError:
        return f"the files hold {name} quantised, and the model has no layer of this name"
    return f"{name} is quantised, which is a {kind}, and no plain linear layer"
