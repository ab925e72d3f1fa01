"""How many pages of a pod's adapter memory an adapter takes, before it is there. Pure."""

from dataclasses import dataclass
from typing import Self

from lorafleet_contract.admin import Budgets, ObservedAdapter


@dataclass(frozen=True, slots=True)
class Paging:
    """How a pod counts pages."""

    num_ranks: int
    num_pages: int = 1
    """What so many ranks take on all linear layers."""
    is_told: bool = False
    """Whether these are the pages that an adapter's `memory_pages` count, as of pods that lay adapters out by their modules."""

    @classmethod
    def of(cls, budgets: Budgets) -> Self:
        """Return how a pod with these budgets counts."""
        if budgets.memory_pages is None:
            return cls(budgets.rank_page)
        return cls(max(1, budgets.total_rank_pages * budgets.rank_page), max(1, budgets.memory_pages), is_told=True)

    def pages_of(self, rank: int, memory_pages: int | None = None) -> int:
        """Return the pages of an adapter; of one that was resolved by a pod that did not say, as many as it can take at most."""
        if self.is_told and memory_pages is not None:
            return memory_pages
        return -(-rank * self.num_pages // self.num_ranks)


def pages_of(entry: ObservedAdapter, budgets: Budgets) -> int:
    """Return the pages of an adapter that a pod with these budgets has: as it says, else as in `Paging`."""
    told = entry.rank_pages if budgets.memory_pages is None else entry.memory_pages
    return told or Paging.of(budgets).pages_of(entry.rank or 0)


def all_pages(budgets: Budgets) -> int:
    """Return the pages that a pod has in all."""
    return budgets.total_rank_pages if budgets.memory_pages is None else budgets.memory_pages
