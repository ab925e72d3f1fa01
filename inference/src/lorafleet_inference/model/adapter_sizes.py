"""How much of the device and of the host an adapter takes, from its plan alone."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorafleet_inference.adapters.extra_tensors import ExtraTensor, Span, extra_tensors, lay, num_pages_of
from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.model.arena import HostPages
from lorafleet_inference.model.host_adapter import Where

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.model.affine_bank import AffineLayout
    from lorafleet_inference.model.side_lora import SideLayout


class AdapterSizes:
    """Counts pages, in which all of an adapter lies: its rows, what kernels compute beside them, and the rest."""

    def __init__(
        self, layout: RowLayout, held: ModelFacts, sides: "SideLayout | None", affine: "AffineLayout | None"
    ) -> None:
        """`held`: what this rank has of the model. `sides` and `affine`: where there are kernels."""
        self._layout, self._held, self._sides, self._affine = layout, held, sides, affine

    def num_pages(self, plan: AdapterPlan) -> int:
        """Return the pages that an adapter takes, on the device and on the host."""
        return self.parts(plan).num_pages

    def parts(self, plan: AdapterPlan) -> "AdapterParts":
        """Return what lies in the pages of an adapter: each of its kinds begins with a page of its own."""
        side_ranks = () if self._sides is None else self._sides.ranks_of(plan)
        affine = () if self._affine is None else self._affine.modules_of(plan)
        apart = self._apart(plan)
        return AdapterParts(
            num_row_pages=self._layout.of_plan(plan).num_pages,
            side_ranks=side_ranks,
            num_side_pages=0 if self._sides is None else self._sides.laid(side_ranks)[1],
            affine=affine,
            num_affine_pages=0 if self._affine is None else self._affine.laid(affine)[1],
            apart=apart,
            num_apart_pages=num_pages_of(apart, self._layout.page),
        )

    def places(self, parts: "AdapterParts", pages: HostPages) -> tuple[dict[Where, list[Span]], list[tuple[Span, ...]]]:
        """Return where the elements of all that an adapter has beside rows lie in its pages, and the spans of `apart`."""
        page, found = self._layout.page, dict[Where, list[Span]]()
        at = parts.num_row_pages * page
        if self._sides is not None:
            found |= _moved(self._sides.spans(parts.side_ranks), at)
        at += parts.num_side_pages * page
        if self._affine is not None:
            found |= _moved(self._affine.spans(parts.affine), at)
        first = parts.first_apart
        apart = list(lay(parts.apart, page, pages.runs_of_elements(first)))
        for one, spans in zip(parts.apart, apart, strict=True):
            width = one.rows(page)[1]
            found[one.module, one.part] = [Span(span.at, span.begin * width, span.end * width) for span in spans]
        return found, apart

    def _apart(self, plan: AdapterPlan) -> tuple[ExtraTensor, ...]:
        """Return what an adapter may have beside rows that no kernel computes."""
        taken: set[Where] = set()
        if self._sides is not None:
            taken |= self._sides.taken(self._sides.ranks_of(plan))
        if self._affine is not None:
            taken |= self._affine.taken(plan)
        return tuple(one for one in extra_tensors(plan, self._held) if (one.module, one.part) not in taken)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterParts:
    """What lies in the pages of an adapter, in this order."""

    num_row_pages: int
    side_ranks: tuple[int, ...]
    """At the sites of `SideLayout`."""
    num_side_pages: int
    affine: tuple[str, ...]
    """Modules whose scale and offset `AffineLayout` lays."""
    num_affine_pages: int
    apart: tuple[ExtraTensor, ...]
    """What no kernel computes."""
    num_apart_pages: int

    @property
    def first_apart(self) -> int:
        """The page where it begins."""
        return self.num_row_pages + self.num_side_pages + self.num_affine_pages

    @property
    def num_pages(self) -> int:
        """Of all of it, one at least."""
        return max(1, self.first_apart + self.num_apart_pages)


def _moved(places: dict[Where, list[Span]], by: int) -> dict[Where, list[Span]]:
    return {where: [replace(one, at=one.at + by) for one in spans] for where, spans in places.items()}
