"""How much of the device and of the host an adapter takes, from its plan alone."""

from typing import TYPE_CHECKING

from lorafleet_inference.adapters.extra_tensors import ExtraTensor, extra_tensors, num_pages_of
from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.engine.messages import ModelFacts

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.model.affine_bank import AffineLayout
    from lorafleet_inference.model.side_lora import SideLayout


class AdapterSizes:
    """Counts pages of the pool, in which all of an adapter lies: its rows, what kernels compute beside them, and the rest."""

    def __init__(
        self, layout: RowLayout, held: ModelFacts, sides: "SideLayout | None", affine: "AffineLayout | None"
    ) -> None:
        """`held`: what this rank has of the model. `sides` and `affine`: where there are kernels."""
        self._layout, self._held, self._sides, self._affine = layout, held, sides, affine

    def num_pages(self, plan: AdapterPlan) -> int:
        """Return the pages that an adapter takes; each of its three kinds begins with a page of its own."""
        num_pages = self._layout.of_plan(plan).num_pages + num_pages_of(self.apart(plan), self._layout.page)
        if self._sides is not None:
            num_pages += self._sides.laid(self._sides.ranks_of(plan))[1]
        if self._affine is not None:
            num_pages += self._affine.laid(self._affine.modules_of(plan))[1]
        return max(1, num_pages)

    def apart(self, plan: AdapterPlan) -> tuple[ExtraTensor, ...]:
        """Return what an adapter may have beside rows that no kernel computes."""
        taken: set[tuple[str, str]] = set()
        if self._sides is not None:
            taken |= self._sides.taken(self._sides.ranks_of(plan))
        if self._affine is not None:
            taken |= self._affine.taken(plan)
        return tuple(one for one in extra_tensors(plan, self._held) if (one.module, one.part) not in taken)

    def host_elements(self, plan: AdapterPlan) -> int:
        """Return the size of an adapter on the host, in elements."""
        num_extra = sum(one.num_elements for one in extra_tensors(plan, self._held))
        return self._layout.of_plan(plan).num_pages * self._layout.page + num_extra
