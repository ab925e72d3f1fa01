"""What a client sees of a choice: text, token ids and log-probabilities, up to its end and with it where it asks."""

import pytest
from support.tokenizers_made import byte_level

from lorafleet_inference.engine.messages import FinishReason, TokenEvent, TokenLogprobs
from lorafleet_inference.text.detokenizer import Detokenizer
from lorafleet_inference.text.output import Output
from lorafleet_inference.text.pieces import PieceTable

TOKENIZER = byte_level()
TABLE = PieceTable(TOKENIZER)
END = TOKENIZER.token_to_id("</s>")


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
