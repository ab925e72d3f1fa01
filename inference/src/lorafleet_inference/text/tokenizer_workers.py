"""Tokenises with the tokenizers of adapters in processes of their own, a few at a time."""

import msgspec

from lorafleet_inference.text.own_tokenizer import OwnTokenizer
from lorafleet_inference.text.tokenizer_process import (
    MAX_ENCODE_CPU_SECONDS,
    MAX_LOAD_CPU_SECONDS,
    Answer,
    Describe,
    Encode,
    Job,
    Place,
)
from lorafleet_inference.text.workers import OutOfHand, Workers

LANES = (1, 2, 1)
"""Processes for tokenizers that are new, that always came to an end, and that did not."""
MAX_SECONDS = 60.0
"""For one job, where the process gets little of a busy CPU; and for the turn of a request."""


class TokenizerFailure(Exception):
    """A tokenizer cannot be read or does not tokenise; the message says why."""


class TokenizerWorkers:
    """A few workers, and the tokenizers that got out of hand just now."""

    def __init__(self) -> None:
        self._workers = Workers(
            "lorafleet_inference.text.tokenizer_process",
            msgspec.msgpack.Decoder(Answer).decode,
            lanes=LANES,
            max_seconds=MAX_SECONDS,
            environment={"TOKENIZERS_PARALLELISM": "false"},
        )

    async def encode(self, job: Encode) -> tuple[int, ...] | None:
        """Return the token ids of a text, None if they are far too many.

        Raises:
            TokenizerFailure: it does not tokenise, or got out of hand a moment ago.
        """
        try:
            answer = await self._workers.ask(job.key, _written(job), MAX_ENCODE_CPU_SECONDS)
        except OutOfHand as error:
            raise TokenizerFailure(str(error)) from error
        if answer.error:
            raise TokenizerFailure(answer.error)
        return answer.token_ids

    def describe(self, place: Place, num_rows: int) -> OwnTokenizer:
        """Read a tokenizer; blocks.

        Raises:
            TokenizerFailure: it cannot be read.
        """
        try:
            answer = self._workers.ask_now(place.directory, _written(Describe(place, num_rows)), MAX_LOAD_CPU_SECONDS)
        except OutOfHand as error:
            raise TokenizerFailure(str(error)) from error
        if answer.error:
            raise TokenizerFailure(answer.error)
        assert answer.tokenizer is not None, "an answer without an error has what was asked for"
        return answer.tokenizer

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that run."""
        return self._workers.pids

    def close(self) -> None:
        """End the processes; nothing is tokenised any more."""
        self._workers.close()


def _written(job: Job) -> bytes:
    try:
        return msgspec.msgpack.encode(job)
    except UnicodeEncodeError as error:
        raise TokenizerFailure("the text is not Unicode") from error
