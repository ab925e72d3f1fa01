"""Rows of an adapter lie whole in its pages and never over one another, and it takes what its modules and ranks fill."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_inference.adapters.row_layout import ALIGN, Place, RowLayout
from lorafleet_inference.engine.messages import ExpertsFacts, ModelFacts, ModuleFacts, ModuleKind

LAYERS, HIDDEN, WIDE, KEYS = 32, 4096, 14336, 1024
SHAPES = {
    "q_proj": (HIDDEN, HIDDEN), "k_proj": (HIDDEN, KEYS), "v_proj": (HIDDEN, KEYS), "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (HIDDEN, WIDE), "up_proj": (HIDDEN, WIDE), "down_proj": (WIDE, HIDDEN),
}  # fmt: skip
Q_AND_V = ("q_proj", "v_proj")


def facts(modules: list[ModuleFacts], **more: object) -> ModelFacts:
    return ModelFacts(
        architecture="A", model_type="a", num_layers=1, vocab_size=9, max_model_len=9, dtype="float32", device="cpu",
        eos_token_ids=(), modules=tuple(modules), **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> RowLayout:
    """Llama-3-8B."""
    modules = [
        ModuleFacts(f"layers.{layer}.{name}", ModuleKind.LINEAR, *shape)
        for layer in range(LAYERS)
        for name, shape in SHAPES.items()
    ]
    head = ModuleFacts("lm_head", ModuleKind.LINEAR, HIDDEN, 128256)
    return RowLayout.of(facts(modules, side_modules=(head,)))


def modules_of(layout: RowLayout, names: tuple[str, ...]) -> list[str]:
    return [module for module in layout.index if module.rsplit(".", 1)[-1] in names]


def test_an_adapter_on_q_and_v_takes_a_sixth_of_one_on_all_modules(llama: RowLayout) -> None:
    """Device, host and copy: all three are its pages. What the formula says is 13,312 of 81,920 elements a rank and layer."""
    everywhere = LAYERS * sum(sum(shape) for shape in SHAPES.values())
    assert llama.rank_elements == everywhere == LAYERS * 81920
    share = sum(sum(SHAPES[name]) for name in Q_AND_V) / 81920
    assert share == 0.1625
    for rank in (8, 16, 32, 64, 256):
        pages, all_pages = llama.num_pages(rank, modules_of(llama, Q_AND_V)), llama.num_pages(rank)
        elements = share * everywhere * rank
        assert elements <= pages * llama.page < elements + llama.page, "of the last page alone something is unused"
        assert everywhere * rank <= all_pages * llama.page < everywhere * rank + llama.page
    assert llama.num_pages(16, modules_of(llama, Q_AND_V)) / llama.num_pages(16) == pytest.approx(1 / 6)
    assert llama.num_pages(16) * llama.page * 2 / 2**20 == pytest.approx(80.2, abs=0.1)
    assert llama.num_pages(16, modules_of(llama, Q_AND_V)) * llama.page * 2 / 2**20 == pytest.approx(13.4, abs=0.1)


def test_pages_divide_a_rank_and_hold_rows_of_the_head(llama: RowLayout) -> None:
    assert llama.page >= 128256
    assert 4 <= llama.rank_elements / llama.page <= 8
    assert [llama.page % width for width in (5120, 8192, 18432)] == [0, 0, 0], (
        "of the sizes there are, one without waste"
    )


def test_a_small_rank_beside_large_ones_costs_its_own(llama: RowLayout) -> None:
    ranks = [64 if "layers.0." in module else 1 for module in llama.index]
    elements = (LAYERS - 1 + 64) * 81920
    assert llama.laid(ranks).num_pages == -(-elements // llama.page)


def test_what_has_no_modules_takes_nothing(llama: RowLayout) -> None:
    assert llama.laid([0] * len(llama.places)).num_pages == 0
    assert RowLayout.of(facts([])).laid([]).num_pages == 0


def test_rows_that_are_too_wide_for_any_page_leave_pages_as_they_are() -> None:
    modules = [ModuleFacts("m", ModuleKind.LINEAR, 48, 32)]
    plain = RowLayout.of(facts(modules))
    head = ModuleFacts("head", ModuleKind.LINEAR, 48, 10_000)
    assert RowLayout.of(facts(modules, side_modules=(head,))).page == plain.page == 80
    embedding = ModuleFacts("embedding", ModuleKind.EMBEDDING, 10_000, 300)
    assert RowLayout.of(facts(modules, side_modules=(embedding,))).page == 320, "rows of its A are as wide as ranks"
    experts = ExpertsFacts("e", 4, (("gate_up_proj", 48, 500), ("down_proj", 250, 48)))
    assert RowLayout.of(facts(modules, experts=(experts,))).page == 560


WIDTHS = st.tuples(st.integers(1, 70), st.integers(1, 70))


@given(st.lists(st.tuples(WIDTHS, st.integers(0, 9)), min_size=1, max_size=8), st.integers(0, 500))
def test_rows_lie_whole_in_pages_and_apart(modules: list[tuple[tuple[int, int], int]], least: int) -> None:
    places = {str(number): Place(a, b, -(-(a + b) // ALIGN) * ALIGN) for number, ((a, b), _) in enumerate(modules)}
    layout, ranks = RowLayout(places, least), [rank for _, rank in modules]
    assert layout.page >= least
    laid = layout.laid(ranks)
    taken: set[tuple[int, int]] = set()
    for place, fit, first, rank in zip(layout.places, layout.fits, laid.firsts, ranks, strict=True):
        assert fit >= 1
        for row in range(first, first + rank):
            page, slot = divmod(row, fit)
            assert page < laid.num_pages
            begin, end = slot * place.row_width, (slot + 1) * place.row_width
            assert begin % ALIGN == 0
            assert end <= layout.page
            cells = {(page, at) for at in range(begin // ALIGN, end // ALIGN)}
            assert not cells & taken
            taken |= cells
    assert laid.num_pages == 1 + max((page for page, _ in taken), default=-1), "no page is taken in vain"
