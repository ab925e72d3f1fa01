"""LoRA on head, embedding, routers and experts by kernels: in pages of the pool beside an adapter's rows, so that it is captured too.

Where something else than A and B stands behind a site (own weights, own rows, another vocabulary; at routers also DoRA's norms and
biases, which belong between product and choice), it is computed as `extras.py` says.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from lorafleet_inference.adapters.extra_tensors import Span
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.engine.messages import AdapterKey, ModelFacts, ModuleKind
from lorafleet_inference.kernels.triton.sides import NUM_ENTRY, SideSite
from lorafleet_inference.model import experts, routers
from lorafleet_inference.model.batch import Segment
from lorafleet_inference.model.experts import ExpertKernels, Pairs
from lorafleet_inference.model.host_adapter import Where, spans_of_rows

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.kernels.triton.backend import TritonKernels
    from lorafleet_inference.kernels.triton.sides import SideStep

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Place:
    """A site of the model."""

    module: str
    parameter: str | None
    """The stacked weight of experts; None of head, embedding and routers."""
    site: SideSite
    num_ids: int = 0
    """Of an embedding: rows of its A."""
    is_router: bool = False

    def rows(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return of A and of B how many rows there are, and how wide they are."""
        number = rank * self.site.num_experts
        a = (self.num_ids, rank) if self.num_ids else (number, self.site.in_width)
        return a, (number, self.site.out_width)

    @property
    def parts(self) -> tuple[str, str]:
        """Names of A and B among what an adapter has beside its rows."""
        match self.parameter:
            case None:
                return "a", "b"
            case experts.DOWN:
                return "down_a", "down_b"
            case _:
                return "up_a", "up_b"


class SideLayout:
    """Where what adapters hold at these sites lies in their pages."""

    def __init__(self, facts: ModelFacts, page: int) -> None:
        """`page`: elements of one."""
        self._page = page
        self.places: list[_Place] = []
        for one in facts.side_modules:
            if max(one.out_features, one.in_features) <= page:
                site = SideSite(len(self.places), one.in_features, one.out_features)
                num_ids = one.in_features * (one.kind is ModuleKind.EMBEDDING)
                self.places.append(_Place(one.name, None, site, num_ids, one.kind is ModuleKind.ROUTER))
        for fused in facts.experts:
            if all(max(widths) <= page for _, *widths in fused.parameters):
                for name, in_width, out_width in fused.parameters:
                    site = SideSite(len(self.places), in_width, out_width, fused.num_experts)
                    self.places.append(_Place(fused.name, name, site))
        self.index = {(place.module, place.parameter): place.site.number for place in self.places}

    def ranks_of(self, plan: AdapterPlan) -> tuple[int, ...]:
        """Return the rank of an adapter at each site, 0 where it has nothing, or something else beside."""
        found: dict[tuple[str, str | None], int] = {(one.module, one.parameter): one.rank for one in plan.experts}
        if plan.num_rows is None:
            others = {one.module for one in plan.own} | {one.module for one in plan.own_rows}
            of_routers = {place.module for place in self.places if place.is_router}
            others |= {
                one.module
                for one in plan.side_sites
                if one.module in of_routers and (one.magnitude_key is not None or one.b_bias_key is not None)
            }
            found |= {(one.module, None): one.rank for one in plan.side_sites if one.module not in others}
        return tuple(found.get((place.module, place.parameter), 0) for place in self.places)

    def taken(self, ranks: Sequence[int]) -> set[tuple[str, str]]:
        """Return which tensors beside rows lie here, of an adapter of these ranks: their modules and parts."""
        pairs = zip(self.places, ranks, strict=True)
        return {(place.module, part) for place, rank in pairs if rank for part in place.parts}

    def laid(self, ranks: Sequence[int]) -> tuple[Int32s, int]:
        """Return the entries of an adapter [sites, NUM_ENTRY], as the kernels read them, and how many pages it takes."""
        entries = np.zeros((len(self.places), NUM_ENTRY), dtype=np.int32)
        end = 0
        for place, rank in zip(self.places, ranks, strict=True):
            if rank:
                a, b = place.rows(rank)
                first_a, end = self._behind(end, *a)
                first_b, end = self._behind(end, *b)
                entries[place.site.number, :3] = rank, first_a, first_b
        return entries, -(-end // self._page)

    def spans(self, ranks: Sequence[int]) -> dict[Where, list[Span]]:
        """Return where the elements of A and B lie in the pages of an adapter of these ranks, by module and part."""
        entries, _ = self.laid(ranks)
        found = {}
        for place, rank in zip(self.places, ranks, strict=True):
            if rank:
                firsts = entries[place.site.number, 1:3].tolist()
                for part, first, (number, width) in zip(place.parts, firsts, place.rows(rank), strict=True):
                    found[place.module, part] = spans_of_rows(self._page, width, first, number)
        return found

    def _behind(self, end: int, number: int, width: int) -> tuple[int, int]:
        """Return the number, among rows of this width, of the first one behind `end` elements, and where the last one ends."""
        fit = self._page // width
        page, at = divmod(end, self._page)
        slot = -(-at // width)
        first = page * fit + slot if slot < fit else (page + 1) * fit
        last_page, last_slot = divmod(first + number - 1, fit)
        return first, last_page * self._page + (last_slot + 1) * width


@dataclass(frozen=True, slots=True)
class _Resident:
    pages: tuple[int, ...]
    entries: Int32s


class SideBank:
    """What adapters hold at these sites, in the pool, and the hooks that add from it."""

    def __init__(self, model: torch.nn.Module, facts: ModelFacts, pool: torch.Tensor, triton: "TritonKernels") -> None:
        """pool [pages, elements of a page], contiguous."""
        self._pool = pool
        self._triton = triton
        self.layout = SideLayout(facts, self._pool.shape[1])
        self._resident: dict[AdapterKey, _Resident] = {}
        self._body: SideStep | None = None
        """For all tokens of the step."""
        self._head: SideStep | None = None
        """For rows of logits."""
        for place in self.layout.places:
            if place.parameter is None:
                self._hook(model.get_submodule(place.module), place)
        sites = [place.site for place in self.layout.places]
        for name in {place.module for place in self.layout.places if place.parameter is not None}:
            up, down = (sites[self.layout.index[name, one]] for one in (experts.UP, experts.DOWN))
            experts.kernels[model.get_submodule(name)] = _OfExperts(self, up, down)

    def most_pages(self, max_rank: int) -> int:
        """Return how many pages one adapter can take."""
        return min(self.layout.laid([max_rank] * len(self.layout.places))[1], len(self._pool))

    def holds(self, segments: Iterable[Segment]) -> bool:
        """Whether one of their adapters has anything here."""
        return any(one.adapter in self._resident for one in segments)

    def install(self, key: AdapterKey, pages: Sequence[int], ranks: Sequence[int]) -> None:
        """Have an adapter of these ranks here, which is copied to pages that no step reads."""
        entries, num_pages = self.layout.laid(ranks)
        if num_pages:
            self._resident[key] = _Resident(tuple(pages), entries)

    def stand_in(self, key: AdapterKey) -> None:
        """Have an adapter of rank 1 at all sites, if there is room, whatever lies in the pages: for kernels to be compiled."""
        entries, num_pages = self.layout.laid([1] * len(self.layout.places))
        if 0 < num_pages <= len(self._pool):
            self._resident[key] = _Resident(tuple(range(num_pages)), entries)

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter."""
        self._resident.pop(key, None)

    def begin_step(
        self, segments: Sequence[Segment], head_segments: Sequence[Segment], num_tokens: int, num_rows: int
    ) -> None:
        """Say which tokens, and which rows of logits, use which adapter in the coming forward pass."""
        self._body, self._head = self._step(segments, num_tokens), self._step(head_segments, num_rows)

    @contextmanager
    def capturing(self, step: "SideStep | None") -> Iterator[None]:
        """While this is open, `step` computes all sites, of single tokens; None: there are no adapters here."""
        self._body = self._head = step
        try:
            yield
        finally:
            self._body = self._head = None

    def fill(
        self,
        items: Int32s,
        owners: Int32s,
        pages: Int32s,
        entries: Int32s,
        segments: Sequence[Segment],
        *,
        item_tokens: int,
    ) -> None:
        """Write the tables of `SideStep`: items [.., 3], which is padding, owners [rows], pages [.., pages], entries [.., sites, 4].

        The items are those of `LoraBank.fill`, but their adapters are numbered by segment, as the tables here are.
        """
        owners.fill(-1)
        number_of_item = 0
        for number, one in enumerate(segments):
            resident = self._resident.get(one.adapter)
            entries[number] = 0 if resident is None else resident.entries
            if resident is not None:
                pages[number, : len(resident.pages)] = resident.pages
            for begin in range(one.begin, one.end, item_tokens):
                end = min(begin + item_tokens, one.end)
                items[number_of_item] = number, begin, end - begin
                owners[begin:end] = number_of_item
                number_of_item += 1

    def adds(self, site: SideSite) -> bool:
        """Whether an adapter of the step has something for all tokens at a site."""
        return self._body is not None and self._body.adds(site)

    def add(self, site: SideSite, x: torch.Tensor, y: torch.Tensor, pairs: Pairs) -> None:
        """Add to y [pairs, out] what experts give for x [pairs, in]."""
        if self._body is not None:
            self._body.add(site, self._pool, x, y, pairs)

    def _step(self, segments: Sequence[Segment], num_rows: int) -> "SideStep | None":
        own = [(one, self._resident[one.adapter]) for one in segments if one.adapter in self._resident]
        if not own:
            return None
        return self._triton.sides(
            [(one.begin, one.end) for one, _ in own],
            [resident.pages for _, resident in own],
            [resident.entries for _, resident in own],
            num_rows,
        )

    def _hook(self, module: torch.nn.Module, place: _Place) -> None:
        scale = getattr(module, "embed_scale", 1.0)
        scale = float(scale.to(self._pool.dtype)) if isinstance(scale, torch.Tensor) else float(scale)

        def of_embedding(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if self._body is not None:
                self._body.embed(place.site, self._pool, args[0].reshape(-1), output.view(-1, output.shape[-1]), scale)

        def of_head(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if self._head is not None:
                self._head.add(place.site, self._pool, _flat(args[0]), output.view(-1, output.shape[-1]), None)

        def of_router(x: torch.Tensor, logits: torch.Tensor) -> None:
            if self._body is not None:
                self._body.add(place.site, self._pool, _flat(x), logits.view(-1, logits.shape[-1]), None)

        if place.is_router:
            routers.adapt(module, of_router, lambda: self.adds(place.site))
        else:
            module.register_forward_hook(of_embedding if place.num_ids else of_head)


@dataclass(frozen=True, slots=True)
class _OfExperts(ExpertKernels):
    """What a module of experts computes with."""

    bank: SideBank
    up: SideSite
    down: SideSite

    def are_wanted(self) -> bool:
        return self.bank.adds(self.up) or self.bank.adds(self.down)

    def add_up(self, x: torch.Tensor, y: torch.Tensor, pairs: Pairs) -> None:
        self.bank.add(self.up, x, y, pairs)

    def add_down(self, x: torch.Tensor, y: torch.Tensor, pairs: Pairs) -> None:
        self.bank.add(self.down, x, y, pairs)


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])
