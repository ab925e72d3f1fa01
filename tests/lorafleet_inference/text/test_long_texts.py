"""Long texts are tokenised beside the event loop, and those that cannot fit are not tokenised to their end."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.tokenizers_made import byte_fallback, byte_level, word_piece
from tokenizers import Tokenizer

from lorafleet_inference.errors import ContextLengthExceeded
from lorafleet_inference.text.tokenizer import Text

MEGABYTE = 1 << 20
LATE_SECONDS = 0.25
"""Of a beat that is due every 5 ms; held up, it was late by seconds."""
TIMES = 5
"""A machine that does other things holds up a beat now and then, and not each time."""


@pytest.fixture(params=[byte_level, byte_fallback, word_piece], ids=lambda make: make.__name__)
def text(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Text]:
    tokenizer: Tokenizer = request.param()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with closing(Text.load(tmp_path)) as loaded:
        yield loaded


async def _latest_beat(work: asyncio.Task[object]) -> float:
    """Return by how much the event loop was late at most, until the work is done."""
    latest = 0.0
    while not work.done():
        began = time.perf_counter()
        await asyncio.sleep(0.005)
        latest = max(latest, time.perf_counter() - began - 0.005)
    return latest


async def test_texts_that_cannot_fit_are_refused_before_they_are_tokenised(text: Text) -> None:
    long = "seven eight " * MEGABYTE
    began = time.process_time()
    with pytest.raises(ContextLengthExceeded) as caught:
        await text.encode(long, add_special_tokens=True, max_tokens=512, field="messages")
    assert caught.value.param == "messages"
    assert time.process_time() - began < 1.0


async def test_the_event_loop_goes_on_while_a_long_text_is_tokenised(text: Text) -> None:
    long = "seven eight " * (MEGABYTE // 12)
    late = []
    while len(late) < TIMES and min(late, default=LATE_SECONDS) >= LATE_SECONDS:
        encoding = asyncio.ensure_future(
            text.encode(long, add_special_tokens=True, max_tokens=MEGABYTE, field="prompt")
        )
        late.append(await _latest_beat(encoding))
        assert list(encoding.result())[:8] == list(text.encode_now(long[:64], add_special_tokens=True))[:8]
    assert min(late) < LATE_SECONDS, late


async def test_texts_of_the_longest_pieces_are_not_refused(text: Text) -> None:
    names = text.pieces.tokenizer.get_vocab(with_added_tokens=False)
    longest = max(names, key=lambda name: len(text.pieces.piece(names[name])))
    piece = text.pieces.piece(names[longest]).decode()
    long = piece * 4000
    num_tokens = len(text.encode_now(long, add_special_tokens=False))
    ids = await text.encode(long, add_special_tokens=False, max_tokens=num_tokens, field="prompt")
    assert len(ids) == num_tokens


async def test_the_end_of_a_very_long_text_costs_as_much_as_that_of_a_long_one(text: Text) -> None:
    long = "seven eight " * MEGABYTE
    began = time.process_time()
    ids = await text.encode(long, add_special_tokens=False, max_tokens=512, field="prompt", keep_last=100)
    assert time.process_time() - began < 1.0
    assert ids == text.encode_now(long[-6000:], add_special_tokens=False)[-100:]
