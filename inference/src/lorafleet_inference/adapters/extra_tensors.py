"""What an adapter holds beside rows of A and B, and in how many pages of adapter memory. Pure: engine and placement reckon by it.

DoRA's norms, biases, copies of whole modules, rows of a vocabulary and LoRA on embedding, head and experts are tensors that lie one after
another in pages of their own. What fits into one page lies in one; of larger ones, no row lies in two pages that are no neighbours.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from lorafleet_inference.adapters.row_layout import ALIGN, RowLayout
from lorafleet_inference.adapters.rows import resized
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.engine.messages import ModelFacts, ModuleKind

ID_BYTES = 8
"""Of a token id."""
ITEM_BYTES = {"float32": 4}
"""Of an element of adapter memory, by the base's dtype; of all others 2."""


@dataclass(frozen=True, slots=True)
class ExtraTensor:
    """One tensor of one module."""

    module: str
    part: str
    """As in `model/extras.py`."""
    num_rows: int
    width: int
    """Of a row, in elements of adapter memory."""

    @property
    def num_elements(self) -> int:
        """Its size."""
        return self.num_rows * self.width

    def rows(self, page: int) -> tuple[int, int]:
        """Return how many pieces may lie apart, and how large each is: one where it fits into a page, else rows, if these do."""
        if self.num_elements <= page:
            return 1, self.num_elements
        return (self.num_rows, self.width) if self.width <= page else (self.num_elements, 1)


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring pieces of a tensor."""

    at: int
    """Where the first one begins, in elements."""
    begin: int
    end: int
    """Which they are, from one to before another."""


def extra_tensors(plan: AdapterPlan, base: ModelFacts) -> tuple[ExtraTensor, ...]:
    """Return what an adapter may have beside rows of A and B, in the order in which it lies in its pages. Nothing is read."""
    return tuple(sorted(_tensors(plan, base), key=lambda one: (one.module, one.part)))


def lay(tensors: Iterable[ExtraTensor], page: int, runs: Iterable[tuple[int, int]]) -> Iterator[tuple[Span, ...]]:
    """Yield of each tensor where it lies. `page`: elements of one. `runs`: where free memory begins and ends, in elements.

    In longer runs they end no later than in as many single pages: so `num_pages_of` are enough, whichever pages they are.
    """
    left = iter(runs)
    at = end = 0
    for one in tensors:
        number, width = one.rows(page)
        spans: list[Span] = []
        done = 0
        while done < number:
            at = -(-at // ALIGN) * ALIGN
            count = min((end - at) // width, number - done)
            if count < 1:
                at, end = next(left)
                continue
            spans.append(Span(at, done, done + count))
            at += count * width
            done += count
        yield tuple(spans)


def num_pages_of(tensors: Sequence[ExtraTensor], page: int) -> int:
    """Return how many pages of so many elements hold these tensors, even where no two are neighbours."""
    taken = 0

    def pages() -> Iterator[tuple[int, int]]:
        nonlocal taken
        while True:
            taken += 1
            yield taken * page, (taken + 1) * page

    for _ in lay(tensors, page, pages()):
        pass
    return taken


def pages_of_files(plan: AdapterPlan, layout: RowLayout, base: ModelFacts) -> int:
    """Return about how many pages an adapter takes, before its weights were compared with the base's.

    Of what peft repeats of the base, nothing is counted.
    """
    own = tuple(one for one in plan.own if not one.is_copy)
    num_extra = num_pages_of(extra_tensors(replace(plan, own=own), base), layout.page)
    return max(1, layout.of_plan(plan).num_pages + num_extra)


def _tensors(plan: AdapterPlan, base: ModelFacts) -> Iterator[ExtraTensor]:
    facts = base if plan.num_rows is None else resized(base, plan.num_rows)
    widths = {one.name: (one.in_features, one.out_features) for one in (*facts.modules, *facts.side_modules)}
    embeddings = {one.name for one in facts.side_modules if one.kind is ModuleKind.EMBEDDING}
    whole = {(one.name, name): shape for one in facts.whole_modules for name, shape in one.parameters}
    for site in plan.side_sites:
        num_in, num_out = widths[site.module]
        a = (num_in, site.rank) if site.module in embeddings else (site.rank, num_in)
        yield ExtraTensor(site.module, "a", *a)
        yield ExtraTensor(site.module, "b", site.rank, num_out)
    own = {(one.module, one.parameter) for one in plan.own}
    yield from _vectors(plan, own, {name: num_out for name, (_, num_out) in widths.items()}, whole)
    for module, _ in (one for one in own if one[1] == "weight"):
        num_rows, *rest = whole[module, "weight"]
        yield ExtraTensor(module, "weight", num_rows, prod(rest))
    stacks = {one.name: one for one in facts.experts}
    for site_of_experts in plan.experts:
        stack = stacks[site_of_experts.module]
        in_width, out_width = next(rest for name, *rest in stack.parameters if name == site_of_experts.parameter)
        side = "down" if site_of_experts.parameter == "down_proj" else "up"
        for part, width in (("a", in_width), ("b", out_width)):
            yield ExtraTensor(stack.name, f"{side}_{part}", stack.num_experts * site_of_experts.rank, width)
    for module in {one.module for one in plan.own_rows}:
        ids = {token_id for one in plan.own_rows if one.module == module for token_id in one.token_ids}
        if ids and (module, "weight") not in own:  # else they are among those of the weight
            yield ExtraTensor(module, "token_ids", len(ids), ID_BYTES // ITEM_BYTES.get(base.dtype, 2))
            yield ExtraTensor(module, "token_rows", len(ids), prod(whole[module, "weight"][1:]))


def _vectors(
    plan: AdapterPlan,
    own: Collection[tuple[str, str]],
    num_outs: Mapping[str, int],
    whole: Mapping[tuple[str, str], tuple[int, ...]],
) -> Iterator[ExtraTensor]:
    """Yield scales, offsets and biases: of each module all that there may be."""
    sites = (*plan.sites, *plan.side_sites)
    scaled = {one.module for one in sites if one.magnitude_key is not None}
    for module in scaled:
        yield ExtraTensor(module, "scale", 1, num_outs[module])
    moved = scaled | {one.module for one in sites if one.b_bias_key is not None}
    with_bias = {module for module, parameter in own if parameter == "bias"}
    for module in moved | with_bias:
        num_out = num_outs[module] if module in num_outs else whole[module, "bias"][0]
        yield ExtraTensor(module, "offset", 1, num_out)
    for module in {module for module, parameter in own if parameter == "weight"}:
        if (module, "bias") in whole:
            yield ExtraTensor(module, "bias", 1, whole[module, "bias"][0])
