"""What a client sees of a choice: text, token ids and log-probabilities, up to its end and with it where it asks."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers_made import byte_level

from lorafleet_inference.engine.token_events import FinishReason, TokenEvent, TokenLogprobs
from lorafleet_inference.text.detokenizer import Detokenizer
from lorafleet_inference.text.output import Output, Shown
from lorafleet_inference.text.pieces import PieceTable

TOKENIZER = byte_level()
TABLE = PieceTable(TOKENIZER)
END = TOKENIZER.token_to_id("</s>")
LETTERS = [TOKENIZER.token_to_id(letter) for letter in "ab#"]
HALF = TOKENIZER.encode("😀", add_special_tokens=False).ids


def output(*stops: str, skip_special: bool = True, show_stop: bool = False, show_ids: bool = False) -> Output:
    detokenizer = Detokenizer(TABLE, strip_leading=True, skip_special=skip_special)
    return Output(detokenizer, stops, show_stop=show_stop, show_ids=show_ids)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)


def ended(text: str) -> TokenEvent:
    """The last event of an answer whose end token is told."""
    ids = (*ids_of(text), END)
    logprobs = tuple(TokenLogprobs(-1.0, ()) for _ in ids)
    return TokenEvent("r", ids, logprobs, with_end=True, finish=FinishReason.STOP)


def test_a_stop_string_is_shown_where_it_is_asked_for_and_nothing_behind_it() -> None:
    event = TokenEvent("r", ids_of("quick brown fox"))
    assert output("own").push(event).text == "quick br"
    assert output("own", show_stop=True).push(event).text == "quick brown"


@pytest.mark.parametrize(
    ("how", "text", "with_end"),
    [
        ({}, "fox", False),
        ({"skip_special": False}, "fox", False),
        ({"show_ids": True}, "fox", True),
        ({"show_stop": True}, "fox", True),
        ({"show_stop": True, "skip_special": False}, "fox</s>", True),
    ],
)
def test_an_end_token_is_part_of_what_was_asked_for(how: dict[str, bool], text: str, with_end: bool) -> None:
    shown = output(**how).push(ended("fox"))
    assert shown.text == text
    assert [token.token_id for token in shown.tokens] == [*ids_of("fox"), *([END] if with_end else [])]
    assert shown.token_ids == ((*ids_of("fox"), END) if how.get("show_ids") else ())


def test_token_ids_come_at_once_even_where_their_text_waits() -> None:
    first, *others = ids_of("fox jumps")
    choice = output("fox jumps over", show_ids=True)
    shown = choice.push(TokenEvent("r", (first,)))
    assert (shown.text, shown.token_ids) == ("", (first,))
    rest = choice.push(TokenEvent("r", tuple(others), finish=FinishReason.LENGTH))
    assert (rest.text, rest.token_ids) == ("fox jumps", tuple(others))


def test_tokens_behind_a_stop_string_are_not_shown() -> None:
    ids = ids_of("fox jumps over the lazy dog")
    shown = output("jumps", show_ids=True).push(TokenEvent("r", ids))
    assert shown.stopped
    assert shown.token_ids == ids[: len(shown.token_ids)]
    assert TOKENIZER.decode(list(shown.token_ids)).startswith("fox jumps")
    assert len(shown.token_ids) < len(ids)


def events_of(token_ids: Sequence[int], cuts: Sequence[int], *, logprobs: bool, with_end: bool) -> list[TokenEvent]:
    """The tokens of an answer, cut into events."""
    ends = [*cuts, len(token_ids)]
    return [
        TokenEvent(
            "r",
            token_ids=tuple(token_ids[start:end]),
            logprobs=tuple(TokenLogprobs(-float(at), ()) for at in range(start, end)) if logprobs else None,
            with_end=with_end and end == len(token_ids) and end > start,
            finish=FinishReason.LENGTH if index == len(ends) - 1 else None,
        )
        for index, (start, end) in enumerate(zip([0, *cuts], ends, strict=True))
    ]


def shown_of(choice: Output, events: Sequence[TokenEvent]) -> Shown:
    """All that a choice shows of its events."""
    text, tokens, num_tokens, token_ids, stopped = "", (), 0, (), False
    for event in events:
        one = choice.push(event)
        text, tokens, num_tokens = text + one.text, tokens + one.tokens, num_tokens + one.num_tokens
        token_ids += one.token_ids
        stopped = one.stopped
        if stopped:
            break
    return Shown(text, tokens, num_tokens, stopped, token_ids)


@given(
    token_ids=st.lists(st.sampled_from([*LETTERS, *HALF]), min_size=1, max_size=24),
    stops=st.lists(st.text(alphabet="ab#", min_size=1, max_size=3), max_size=2),
    flags=st.tuples(*[st.booleans()] * 4),
    data=st.data(),
)
def test_what_is_shown_does_not_depend_on_how_tokens_are_bundled(
    token_ids: list[int], stops: list[str], flags: tuple[bool, ...], data: st.DataObject
) -> None:
    logprobs, with_end, show_stop, show_ids = flags
    cuts = sorted(data.draw(st.lists(st.integers(0, len(token_ids) - 1), max_size=6)))
    bundled, single = (
        shown_of(
            output(*stops, show_stop=show_stop, show_ids=show_ids),
            events_of(token_ids, some, logprobs=logprobs, with_end=with_end),
        )
        for some in (cuts, range(1, len(token_ids)))
    )
    assert bundled == single
    assert bundled.num_tokens == len(token_ids) or bundled.stopped
