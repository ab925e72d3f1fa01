"""Where A and B of an adapter lie in adapter memory, and how many pages it takes. Pure: engine, plan and placement reckon by it.

Adapter memory is pages of one size. An adapter of rank r at a module has r rows there: row i of A and behind it column i of
B. Rows of one width are a group: queries and outputs, keys and values, gate, up and down of a usual model are three. An
adapter's rows lie group by group, widest first, one after another in its pages, each of which holds as many whole rows of a
width as fit. A module that it does not change has no rows, and no rank is padded to another module's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.engine.messages import ModelFacts, ModuleKind

ALIGN = 16
"""A row begins at a multiple of so many elements: so that the kernels of a GPU can load several at once."""
PARTS = 8
"""A page is about this part of what one rank takes in all modules: so small adapters waste little of their last one."""


@dataclass(frozen=True, slots=True)
class Place:
    """How wide the rows of a module are, in elements."""

    in_width: int
    """Of A's part of a row, which comes first."""
    out_width: int
    row_width: int
    """Of both, up to where the next row begins."""


@dataclass(frozen=True, slots=True)
class Laid:
    """Where the rows of one adapter lie."""

    firsts: tuple[int, ...]
    """Of each module, the number of its first row among rows of its width: in the adapter's pages, of which each has its fits."""
    num_pages: int


class RowLayout:
    """How rows of a base model's modules lie in pages."""

    def __init__(self, places: Mapping[str, Place], least_page: int = 0) -> None:
        """`places` by module; `least_page`: elements that a page has at least."""
        self.places = tuple(places.values())
        self.index = {name: number for number, name in enumerate(places)}
        self.rank_elements = max(1, sum(place.row_width for place in self.places))
        """What one rank takes in all modules."""
        self.page = _page_of(self.places, least_page)
        """Elements of a page."""
        self.fits = tuple(self.page // place.row_width for place in self.places)
        """Rows of each module that a page holds."""
        order = sorted(enumerate(self.places), key=lambda one: -one[1].row_width)
        self._order = [(number, place.row_width) for number, place in order]

    @classmethod
    def of(cls, facts: ModelFacts) -> "RowLayout":
        """Return the layout of a base model, whose pages hold rows of its head, embedding and experts too, if they are not too wide."""
        places = {}
        for one in facts.modules:
            width = -(-(one.in_features + one.out_features) // ALIGN) * ALIGN
            places[one.name] = Place(one.in_features, one.out_features, width)
        most = PARTS * sum(place.row_width for place in places.values())
        return cls(places, max((width for width in _side_widths(facts) if width <= most), default=0))

    def ranks_of(self, plan: AdapterPlan) -> tuple[int, ...]:
        """Return the rank of an adapter at each module, 0 where it has none."""
        return self._ranks({site.module: site.rank for site in plan.sites})

    def of_plan(self, plan: AdapterPlan) -> Laid:
        """Return where the rows of an adapter lie."""
        return self.laid(self.ranks_of(plan))

    def laid(self, ranks: Sequence[int]) -> Laid:
        """Return where the rows of an adapter of these ranks lie."""
        firsts = [0] * len(ranks)
        end, width, row = 0, 0, 0
        for number, own_width in self._order:
            rank = ranks[number]
            if not rank:
                continue
            if own_width != width:
                width, row = own_width, self._first_behind(end, own_width)
            firsts[number] = row
            row += rank
            page, slot = divmod(row - 1, self.page // width)
            end = page * self.page + (slot + 1) * width
        return Laid(tuple(firsts), -(-end // self.page))

    def num_pages(self, rank: int, modules: Iterable[str] | None = None) -> int:
        """Return the pages of an adapter of one rank, at all modules or at those with these names."""
        chosen = self.index if modules is None else modules
        return self.laid(self._ranks(dict.fromkeys(chosen, rank))).num_pages

    def _ranks(self, by_name: Mapping[str, int]) -> tuple[int, ...]:
        found = [0] * len(self.places)
        for name, rank in by_name.items():
            found[self.index[name]] = rank
        return tuple(found)

    def _first_behind(self, end: int, width: int) -> int:
        """Return the number, among rows of a width, of the first one that begins behind `end` elements."""
        fit = self.page // width
        page, at = divmod(end, self.page)
        slot = -(-at // width)
        return page * fit + slot if slot < fit else (page + 1) * fit


def _page_of(places: Sequence[Place], least: int) -> int:
    """Return the elements of a page: of the sizes that are about the wanted one, the one whose end is least often unused."""
    by_width: dict[int, int] = {}
    for place in places:
        by_width[place.row_width] = by_width.get(place.row_width, 0) + place.row_width
    if not by_width:
        return -(-max(least, ALIGN) // ALIGN) * ALIGN
    begin = max(least, *by_width, -(-sum(by_width.values()) // PARTS))
    sizes = {number * width for width in by_width for number in range(-(-begin // width), -(-2 * begin // width))}

    def unused(size: int) -> float:
        return sum(all_of * (size % width) for width, all_of in by_width.items()) / size

    return min(sizes, key=lambda size: (unused(size), size))


def _side_widths(facts: ModelFacts) -> Iterable[int]:
    for one in facts.side_modules:
        if one.kind is ModuleKind.EMBEDDING:
            yield one.out_features
        elif one.kind is not ModuleKind.ROUTER:
            yield from (one.in_features, one.out_features)
    for stack in facts.experts:
        for _, in_width, out_width in stack.parameters:
            yield from (in_width, out_width)
