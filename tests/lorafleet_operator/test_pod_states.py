"""Documents of pods that are read in pieces are those that are read as a whole, whatever stands in them."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support import operator_views as v

from lorafleet_contract.admin import LocalFailure, ObservedAdapter, PodDifference, PodState, RevisionRef
from lorafleet_operator.act.pod_states import MIN_BYTES, PodStates

MARKS = ["", "ok", "},{", "}]", '"adapters":[{', '"},{"name":"x"', "]}", "\\", '\\"},{\\"']


def document(messages: list[str], *, failure: str = "") -> bytes:
    entries = [v.entry(f"content-{n}", f"name-{n}", message=message) for n, message in enumerate(messages)]
    state = v.seen(*entries, pod=v.pod()).state
    assert state is not None
    failures = [LocalFailure(name="local", reason="Odd", message=failure)] if failure else []
    return state.model_copy(update={"local_failures": failures}).model_dump_json(by_alias=True).encode()


def long(*messages: str) -> list[str]:
    return [*messages, *["filler"] * 20]


@given(st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=8))), st.sampled_from(MARKS))
def test_it_reads_what_the_whole_says(messages: list[str], failure: str) -> None:
    raw, states = document(long(*messages), failure=failure), PodStates()
    assert len(raw) > MIN_BYTES
    assert states.read(raw) == states.read(raw) == PodState.model_validate_json(raw)


def test_what_is_written_in_another_way_is_read_as_well() -> None:
    raw = document(long("one"))
    spaced = raw.replace(b",", b", ").replace(b"[", b"[ ")
    nested = raw.replace(b'"owner"', b'"later":[{"a":1},{"b":2}],"owner"')
    twice = raw[:-1] + b',"adapters":[' + raw.split(b'"adapters":[')[1].split(b"},{")[0] + b"}]}"
    for other in (spaced, nested, twice, document([])):
        assert PodStates().read(other) == PodState.model_validate_json(other)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda raw: raw[:-40], id="cut off"),
        pytest.param(lambda raw: raw.replace(b'"name":"name-1"', b'"name":7'), id="a wrong entry"),
        pytest.param(lambda raw: raw.replace(b'"fence":', b'"fence":-'), id="a wrong head"),
    ],
)
def test_what_is_no_document_is_refused_in_the_words_of_the_whole(broken) -> None:
    raw = broken(document(long("one")))
    with pytest.raises(ValidationError) as whole:
        PodState.model_validate_json(raw)
    with pytest.raises(ValidationError) as found:
        PodStates().read(raw)
    assert found.value.errors(include_input=False) == whole.value.errors(include_input=False)


def test_pods_that_say_the_same_have_the_same_objects_and_none_is_kept_longer_than_documents() -> None:
    states = PodStates()
    first, second = states.read(document(long("one"))), states.read(document(long("two")))
    same = [a is b for a, b in zip(first.adapters, second.adapters, strict=True)]
    assert same == [False, *[True] * 20]
    assert states.num_entries == 22
    del first
    gc.collect()
    assert states.num_entries == 21


def test_document_made_of_differences_is_like_any_other() -> None:
    states = PodStates()
    whole = states.read(document(long("one")))

    def news(known: PodState, *entries: ObservedAdapter, removed: tuple[RevisionRef, ...] = ()) -> PodState:
        fields = {**dict(known), "adapters": list(entries), "generation": known.generation + 1}
        told = PodDifference(**fields, since=known.generation, removed=list(removed))
        return states.read_news(told.model_dump_json(by_alias=True, exclude_none=True).encode(), known)

    first, second = (entry.model_copy(update={"stable": not entry.stable}) for entry in whole.adapters[:2])
    one = news(whole, first)
    both, other = news(one, second), news(one, removed=(RevisionRef(name=second.name, revision=second.revision),))
    assert both.adapters == [first, second, *whole.adapters[2:]]
    assert other.adapters == [first, *whole.adapters[2:]], (
        "of two that follow one document neither has what the other has"
    )
    assert both == PodState(**dict(whole)).model_copy(update={"adapters": both.adapters, "generation": both.generation})
    assert both.model_dump() == PodState(**dict(both)).model_dump()
    shorter = both.model_copy(update={"adapters": both.adapters[:5]})
    assert news(shorter, first).adapters == both.adapters[:5]
