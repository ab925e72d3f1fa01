"""Scales and offsets of linear modules by a kernel: DoRA's norms and biases of adapters, in pages of the pool beside their rows.

So steps with them are captured too. Where a module has weights of an adapter's own, and at heads, embeddings, routers and norms,
`extras.py` computes them.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from lorafleet_inference.adapters.extra_tensors import Span
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.engine.messages import AdapterKey, ModelFacts
from lorafleet_inference.kernels.triton.affines import ALIGN, AffineSite, affine_site
from lorafleet_inference.model.batch import Segment
from lorafleet_inference.model.decoder.linear import Linear
from lorafleet_inference.model.host_adapter import Where, spans_of_rows

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.kernels.triton.affines import AffineStep
    from lorafleet_inference.kernels.triton.backend import TritonKernels

Int32s = npt.NDArray[np.int32]
VECTORS = ("scale", "offset")
"""Of a module, in their order; one that an adapter does not have is all ones, or zeros."""


class AffineLayout:
    """Where scales and offsets of an adapter lie in its pages."""

    def __init__(self, facts: ModelFacts, page: int) -> None:
        """`page`: elements of one."""
        self.page = page
        widths = {one.name: one.out_features for one in facts.modules}
        fit = page % ALIGN == 0 and all(width % ALIGN == 0 and width <= page for width in widths.values())
        self.widths = widths if fit else {}
        """Of modules by name, in the order of the tables; empty where the kernel cannot be used."""
        self.index = {name: number for number, name in enumerate(self.widths)}

    def modules_of(self, plan: AdapterPlan) -> tuple[str, ...]:
        """Return the modules where an adapter has a scale or an offset, and nothing else beside A and B."""
        whole = {one.module for one in plan.own if one.parameter != "bias"} | {one.module for one in plan.own_rows}
        found = {one.module for one in plan.sites if one.magnitude_key is not None or one.b_bias_key is not None}
        found |= {one.module for one in plan.own if one.parameter == "bias"}
        return tuple(name for name in self.index if name in found - whole)

    def taken(self, plan: AdapterPlan) -> set[tuple[str, str]]:
        """Return which tensors beside rows lie here, of an adapter: their modules and parts."""
        return set(itertools.product(self.modules_of(plan), VECTORS))

    def spans(self, names: Collection[str]) -> dict[Where, list[Span]]:
        """Return where the scale and the offset of each of these modules lie in the pages of an adapter, by module and part."""
        entries, _ = self.laid(names)
        found = {}
        for name in names:
            first = int(entries[self.index[name]])
            for number, part in enumerate(VECTORS):
                found[name, part] = spans_of_rows(self.page, self.widths[name], first + number, 1)
        return found

    def laid(self, names: Collection[str]) -> tuple[Int32s, int]:
        """Return the entries of an adapter [modules], as the kernel reads them, and how many pages it takes.

        Rows of all widths follow each other; none lies in two pages.
        """
        entries = np.full(len(self.index), -1, dtype=np.int32)
        end = 0
        for name in names:
            width = self.widths[name]
            fit = self.page // width
            page, at = divmod(end, self.page)
            slot = -(-at // width)
            first = page * fit + slot if slot < fit else (page + 1) * fit
            entries[self.index[name]] = first
            last_page, last_slot = divmod(first + len(VECTORS) - 1, fit)
            end = last_page * self.page + (last_slot + 1) * width
        return entries, -(-end // self.page)


@dataclass(frozen=True, slots=True)
class _Resident:
    pages: tuple[int, ...]
    entries: Int32s


class AffineBank:
    """Scales and offsets of adapters, in the pool, and the hooks that apply them behind LoRA's."""

    def __init__(self, model: torch.nn.Module, facts: ModelFacts, pool: torch.Tensor, triton: "TritonKernels") -> None:
        """pool [pages, elements of a page], contiguous. Comes after `LoraBank`, whose hooks have to run before."""
        self._pool, self._triton = pool, triton
        self.layout = AffineLayout(facts, pool.shape[1])
        self._resident: dict[AdapterKey, _Resident] = {}
        self._step: AffineStep | None = None
        fused: set[str] = set()
        names = {module: name for name, module in model.named_modules()}
        for product in names:
            if isinstance(product, Linear) and product.parts:
                parts = [names[part] for part in product.parts]
                if all(part in self.layout.index for part in parts):
                    fused.update(parts)
                    self._hook(product, parts)
        for name in self.layout.index:
            if name not in fused:
                self._hook(model.get_submodule(name), [name])

    def most_pages(self) -> int:
        """Return how many pages one adapter can take."""
        return min(self.layout.laid(tuple(self.layout.index))[1], len(self._pool))

    def holds(self, segments: Iterable[Segment]) -> bool:
        """Whether one of their adapters has anything here."""
        return any(one.adapter in self._resident for one in segments)

    def install(self, key: AdapterKey, pages: Sequence[int], names: Sequence[str]) -> None:
        """Have the scales and offsets of these modules here, which are copied to pages that no step reads."""
        entries, num_pages = self.layout.laid(names)
        if num_pages:
            self._resident[key] = _Resident(tuple(pages), entries)

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter."""
        self._resident.pop(key, None)

    def begin_step(self, segments: Sequence[Segment]) -> None:
        """Say which tokens use which adapter in the coming forward pass."""
        own = [(one, self._resident[one.adapter]) for one in segments if one.adapter in self._resident]
        self._step = None
        if own:
            self._step = self._triton.affine(
                [(one.begin, one.end) for one, _ in own],
                [resident.pages for _, resident in own],
                [resident.entries for _, resident in own],
            )

    @contextmanager
    def capturing(self, step: "AffineStep | None") -> Iterator[None]:
        """While this is open, `step` changes what modules give; None: no adapter has anything here."""
        self._step = step
        try:
            yield
        finally:
            self._step = None

    def fill(self, items: Int32s, pages: Int32s, entries: Int32s, segments: Sequence[Segment], room: int) -> None:
        """Write the tables of `AffineStep` for items of at most `room` rows: items [.., 3], pages [.., pages], entries [.., modules]."""
        items.fill(0)
        at = 0
        own = [(one, self._resident[one.adapter]) for one in segments if one.adapter in self._resident]
        for number, (one, resident) in enumerate(own):
            pages[number, : len(resident.pages)] = resident.pages
            entries[number] = resident.entries
            for begin in range(one.begin, one.end, room):
                items[at] = number, begin, min(room, one.end - begin)
                at += 1

    def _hook(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        widths = [self.layout.widths[name] for name in names]
        site: AffineSite = affine_site([self.layout.index[name] for name in names], widths, self._pool.device)

        def apply(_: torch.nn.Module, _args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if self._step is not None:
                self._step.change(site, self._pool, output.view(-1, output.shape[-1]))

        module.register_forward_hook(apply)
