"""The process that renders the templates of adapters: somebody else's programs. Runs as `confined.py` says; msgpack in the frames."""

import msgspec

from lorafleet_inference.text.confined import Work, serve
from lorafleet_inference.text.conversation import Conversation

MAX_CPU_SECONDS = 2.0
"""For one rendering; honest templates need milliseconds."""
HURRIED_CPU_SECONDS, HURRIED_SECONDS_PER_BYTE = 0.25, 1e-7
"""For one that others wait for: of any, and for each byte of the conversation."""
MAX_MEMORY_BYTES = 512 << 20
"""Beyond what the process needs before the first template."""


class Job(msgspec.Struct, frozen=True, array_like=True):
    """One rendering."""

    source: str
    asked: Conversation
    special_tokens: dict[str, str]


class Done(msgspec.Struct, frozen=True, array_like=True):
    """What came of it: a text, or how it failed and why."""

    text: str | None
    failing: str = ""
    message: str = ""


def _cpu_seconds(data: bytes, is_hurried: bool) -> float:
    soon = HURRIED_CPU_SECONDS + HURRIED_SECONDS_PER_BYTE * len(data)
    return min(soon, MAX_CPU_SECONDS) if is_hurried else MAX_CPU_SECONDS


def main() -> None:
    """Render until standard input ends."""
    from lorafleet_inference.text.rendering import Failing, TemplateFailure, render  # noqa: PLC0415  after `main` began

    decoder = msgspec.msgpack.Decoder(Job)

    def do(data: bytes, _: bool) -> tuple[bytes, bool]:
        job = decoder.decode(data)
        try:
            done = Done(render(job.source, job.asked, job.special_tokens))
        except TemplateFailure as failure:
            done = Done(None, failure.failing.value, str(failure))
        return msgspec.msgpack.encode(done), done.failing == Failing.OUT_OF_HAND

    serve(Work(do, _cpu_seconds), max_memory_bytes=MAX_MEMORY_BYTES)


if __name__ == "__main__":
    main()
