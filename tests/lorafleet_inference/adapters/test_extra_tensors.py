"""Tensors of adapters beside rows: they lie in their pages, apart from each other, whichever pages they are."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lorafleet_inference.adapters.extra_tensors import ExtraTensor, lay, num_pages_of
from lorafleet_inference.adapters.row_layout import ALIGN
from lorafleet_inference.engine.free_pages import runs_of

PAGE = 64
TENSORS = st.lists(
    st.builds(ExtraTensor, st.just("m"), st.just("a"), st.integers(1, 30), st.sampled_from((1, 4, 7, 16, 33, 64, 90)))
)


@given(tensors=TENSORS, data=st.data())
def test_any_pages_as_many_as_were_counted_hold_them(tensors: list[ExtraTensor], data: st.DataObject) -> None:
    num_pages = num_pages_of(tensors, PAGE)
    numbers = st.lists(st.integers(0, 2 * num_pages), min_size=num_pages, max_size=num_pages, unique=True)
    pages = sorted(data.draw(numbers))
    runs = [(begin * PAGE, end * PAGE) for begin, end in runs_of(pages)]
    found = list(lay(tensors, PAGE, runs))
    assert len(found) == len(tensors)
    taken = []
    for one, spans in zip(tensors, found, strict=True):
        number, width = one.rows(PAGE)
        assert [spans[0].begin, *(span.end for span in spans)] == [0, *(span.begin for span in spans[1:]), number]
        assert one.num_elements > PAGE or len(spans) == 1
        for span in spans:
            end = span.at + (span.end - span.begin) * width
            assert span.at % ALIGN == 0
            assert any(first <= span.at and end <= last for first, last in runs)
            taken.append((span.at, end))
    assert all(end <= begin for (_, end), (begin, _) in pairwise(sorted(taken)))


def test_no_pages_for_nothing_and_none_that_is_not_needed() -> None:
    assert num_pages_of([], PAGE) == 0
    assert num_pages_of([ExtraTensor("m", "scale", 1, 48), ExtraTensor("m", "offset", 1, 16)], PAGE) == 1
    assert num_pages_of([ExtraTensor("m", "scale", 1, 48), ExtraTensor("m", "offset", 1, 17)], PAGE) == 2
    assert num_pages_of([ExtraTensor("m", "weight", 9, 16)], PAGE) == 3
    assert num_pages_of([ExtraTensor("m", "weight", 2, 48)], PAGE) == 2, "no row lies in two pages"
    assert num_pages_of([ExtraTensor("m", "bias", 1, 65)], PAGE) == 2, "a row that no page holds does"
