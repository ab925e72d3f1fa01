"""The process that renders the templates of adapters: somebody else's programs, with a limit of memory and of CPU time.

Speaks `frames.py` on its standard input and output, msgpack in them. Says `READY` first. A template that takes too much time
ends the process by SIGPROF; whoever started it starts another one.
"""

import os
import resource
import signal
import sys
from pathlib import Path

import msgspec

from lorafleet_inference.text.conversation import Conversation
from lorafleet_inference.text.frames import READY, read_frame, write_frame

MAX_CPU_SECONDS = 2.0
"""For one rendering; honest templates need milliseconds."""
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


def main() -> None:
    """Render until standard input ends."""
    from lorafleet_inference.text.rendering import Failing, TemplateFailure, render  # noqa: PLC0415  after `main` began

    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    write_frame(out, READY)
    decoder = msgspec.msgpack.Decoder(Job)
    while (data := read_frame(sys.stdin.buffer)) is not None:
        job = decoder.decode(data)
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
        try:
            done = Done(render(job.source, job.asked, job.special_tokens))
        except TemplateFailure as failure:
            done = Done(None, failure.failing.value, str(failure))
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(out, msgspec.msgpack.encode(done))
        if done.failing == Failing.OUT_OF_HAND:
            return  # what it left in memory goes with the process


if __name__ == "__main__":
    main()
