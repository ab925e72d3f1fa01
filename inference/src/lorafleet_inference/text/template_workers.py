"""Renders templates of adapters in processes of their own, a few at a time."""

from collections.abc import Mapping, Sequence

import msgspec

from lorafleet_inference.text.conversation import Conversation
from lorafleet_inference.text.rendering import Failing, TemplateFailure
from lorafleet_inference.text.template_process import MAX_CPU_SECONDS, Done, Job
from lorafleet_inference.text.workers import OutOfHand, Workers

LANES = (1, 2, 1)
"""Processes for templates that are new, that always came to an end, and that did not."""
MAX_SECONDS = 30.0
"""For one rendering, where the process gets little of a busy CPU; and for the turn of a request."""


class TemplateWorkers:
    """A few workers, and the templates that got out of hand just now."""

    def __init__(self, lanes: Sequence[int] = LANES) -> None:
        self._workers = Workers(
            "lorafleet_inference.text.template_process",
            msgspec.msgpack.Decoder(Done).decode,
            lanes=lanes,
            max_seconds=MAX_SECONDS,
            out_of_hand=lambda done: done.message if done.failing == Failing.OUT_OF_HAND else None,
            environment={"HF_HUB_OFFLINE": "1"},
        )

    async def render(self, source: str, asked: Conversation, special_tokens: Mapping[str, str]) -> str:
        """As `render_now`, for the event loop.

        Raises:
            TemplateFailure: as `render_now`; or others that end like this template held it up for too long.
        """
        try:
            done = await self._workers.ask(source, _written(source, asked, special_tokens), MAX_CPU_SECONDS)
        except OutOfHand as error:
            raise TemplateFailure(Failing.OUT_OF_HAND, str(error)) from error
        return _text(done)

    def render_now(self, source: str, asked: Conversation, special_tokens: Mapping[str, str]) -> str:
        """Return the prompt; blocks.

        Raises:
            TemplateFailure: the template failed, or got out of hand a moment ago.
        """
        try:
            done = self._workers.ask_now(source, _written(source, asked, special_tokens), MAX_CPU_SECONDS)
        except OutOfHand as error:
            raise TemplateFailure(Failing.OUT_OF_HAND, str(error)) from error
        return _text(done)

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that run."""
        return self._workers.pids

    def close(self) -> None:
        """End the processes; nothing renders any more."""
        self._workers.close()


def _written(source: str, asked: Conversation, special_tokens: Mapping[str, str]) -> bytes:
    try:
        return msgspec.msgpack.encode(Job(source, asked, dict(special_tokens)))
    except OverflowError as error:
        raise TemplateFailure(Failing.REFUSED, f"a number is too large: {error}") from error


def _text(done: Done) -> str:
    if done.text is None:
        raise TemplateFailure(Failing(done.failing), done.message)
    return done.text
