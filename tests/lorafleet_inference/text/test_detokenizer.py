"""Streams never break a character, and joined they are the whole text."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers_made import byte_fallback, byte_level, word_piece
from tokenizers import Tokenizer

from lorafleet_inference.text.detokenizer import REPLACEMENT, Detokenizer
from lorafleet_inference.text.pieces import PieceTable

BYTE_LEVEL, FALLBACK, GEMMA, WORD_PIECE = byte_level(), byte_fallback(), byte_fallback(strip=False), word_piece()
TABLES = {id(tokenizer): PieceTable(tokenizer) for tokenizer in (BYTE_LEVEL, FALLBACK, GEMMA, WORD_PIECE)}
all_kinds = pytest.mark.parametrize(
    "tokenizer", [BYTE_LEVEL, FALLBACK, GEMMA, WORD_PIECE], ids=["byte", "fallback", "gemma", "wp"]
)


def stream(tokenizer: Tokenizer, ids: list[int], *, strip_leading: bool = True, **how: bool) -> list[str]:
    detokenizer = Detokenizer(TABLES[id(tokenizer)], strip_leading=strip_leading, **how)
    return [*(detokenizer.push([token_id]) for token_id in ids), detokenizer.finish()]


def token_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=40)


@all_kinds
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_any_text_comes_back_piece_by_piece_as_the_tokenizer_decodes_it(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in pieces)


@given(data=st.data())
def test_any_tokens_of_a_byte_level_model_decode_as_the_tokenizer_does(data: st.DataObject) -> None:
    ids = data.draw(token_ids(BYTE_LEVEL))
    assert "".join(stream(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


@pytest.mark.parametrize("tokenizer", [FALLBACK, GEMMA], ids=["fallback", "gemma"])
@given(data=st.data())
def test_byte_fallback_shows_whole_characters_even_beside_broken_bytes(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(token_ids(tokenizer))
    ours, whole = "".join(stream(tokenizer, ids)), tokenizer.decode(ids)
    if REPLACEMENT not in whole:
        assert ours == whole
    else:
        assert REPLACEMENT in ours


@all_kinds
@given(data=st.data())
def test_the_pieces_do_not_depend_on_how_the_tokens_are_bundled(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(token_ids(tokenizer))
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = Detokenizer(TABLES[id(tokenizer)], strip_leading=True)
    bundled = detokenizer.push(ids[:cut]) + detokenizer.push(ids[cut:]) + detokenizer.finish()
    assert bundled == "".join(stream(tokenizer, ids))


def test_a_character_of_four_tokens_shows_with_its_last_token() -> None:
    ids = [FALLBACK.token_to_id(f"<0x{byte:02X}>") for byte in "🦊".encode()]
    assert stream(FALLBACK, ids) == ["", "", "", "🦊", ""]


def test_a_continuation_keeps_the_space_that_a_text_by_itself_loses() -> None:
    ids = FALLBACK.encode("quick", add_special_tokens=False).ids
    assert "".join(stream(FALLBACK, ids, strip_leading=True)) == "quick"
    assert "".join(stream(FALLBACK, ids, strip_leading=False)) == " quick"


def test_special_tokens_and_unknown_ids_add_nothing() -> None:
    eos = BYTE_LEVEL.token_to_id("</s>")
    ids = [eos, *BYTE_LEVEL.encode("fox", add_special_tokens=False).ids, eos, 10**6]
    assert "".join(stream(BYTE_LEVEL, ids)) == "fox"


@all_kinds
def test_special_tokens_are_shown_where_they_are_asked_for(tokenizer: Tokenizer) -> None:
    begin, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    words = tokenizer.encode("quick fox", add_special_tokens=False).ids
    ids = [begin, *words, end, end, *words, end]
    shown = "".join(stream(tokenizer, ids, skip_special=False))
    assert shown == tokenizer.decode(ids, skip_special_tokens=False)
    assert shown.startswith("<s>")
    assert shown.endswith("</s>")


def test_special_tokens_stand_side_by_side_where_that_is_asked_for() -> None:
    begin, end = WORD_PIECE.token_to_id("<s>"), WORD_PIECE.token_to_id("</s>")
    ids = [begin, begin, *WORD_PIECE.encode("fox", add_special_tokens=False).ids, end, end]
    assert "".join(stream(WORD_PIECE, ids, skip_special=False)) == "<s> <s> fox </s> </s>"
    assert "".join(stream(WORD_PIECE, ids, skip_special=False, space_special=False)) == "<s><s> fox </s></s>"


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_pieces_of_real_tokenizers_are_exact(make: Callable[[], Tokenizer]) -> None:
    assert PieceTable(make()).exact


def test_a_decoder_that_looks_at_neighbours_is_not_taken_for_exact() -> None:
    assert not TABLES[id(WORD_PIECE)].exact
