"""The process that tokenises with the tokenizers of adapters: somebody else's programs, whose patterns may never end.

Speaks `frames.py`: jobs in, one answer each out. A job that takes too much time ends the process by
SIGPROF, one that takes too much memory by an abort; whoever started it starts another one. It keeps the tokenizers that it
used last.
"""

import os
import resource
import signal
import sys
from collections import OrderedDict
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from lorafleet_inference.text.encoding import encode_bounded, encode_last
from lorafleet_inference.text.files import TOKENIZER, TextFileError
from lorafleet_inference.text.frames import READY, read_frame, write_frame
from lorafleet_inference.text.own_tokenizer import OwnTokenizer, build, describe, has_tokenizer

MAX_LOAD_CPU_SECONDS = 15.0
"""For reading a tokenizer and making its table; one of 150,000 tokens takes 1.2 s."""
MAX_ENCODE_CPU_SECONDS = 5.0
"""For one text; a prompt of 100,000 tokens takes half a second."""
MAX_MEMORY_BYTES = 1 << 30
"""Beyond what the process needs before the first tokenizer; one of 150,000 tokens takes 110 MiB."""
MAX_KEPT_BYTES = 32 << 20
"""Of the tokenizer.json files of those that are kept, beside the last one."""


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a tokenizer lies: the adapter's folder, and the base's, which it may add to."""

    directory: str
    base_directory: str


class Describe(msgspec.Struct, frozen=True, tag=True):
    """Read a tokenizer and say what it is; `num_rows`: of the embedding that it is used with."""

    place: Place
    num_rows: int


class Encode(msgspec.Struct, frozen=True, tag=True):
    """Tokenise a text with the tokenizer of this key, read again from the place where it is not kept."""

    key: str
    place: Place
    text: str
    add_special_tokens: bool
    max_tokens: int
    keep_last: int | None
    """How many tokens of the end are wanted, where not all are."""


Job = Describe | Encode


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What came of a job: what it wanted, or why it failed."""

    tokenizer: OwnTokenizer | None = None
    token_ids: tuple[int, ...] | None = None
    """None also where they are too many."""
    error: str = ""


class _Kept:
    """The tokenizers that were used last."""

    def __init__(self) -> None:
        self._tokenizers: OrderedDict[str, tuple[Tokenizer, int]] = OrderedDict()

    def find(self, key: str, place: Place) -> Tokenizer:
        """Return a tokenizer, read if it is not kept."""
        if key not in self._tokenizers:
            self.put(key, build(Path(place.directory), Path(place.base_directory)), place)
        self._tokenizers.move_to_end(key)
        return self._tokenizers[key][0]

    def put(self, key: str, tokenizer: Tokenizer, place: Place) -> None:
        where = place.directory if has_tokenizer(Path(place.directory)) else place.base_directory
        size = Path(where, TOKENIZER).stat().st_size
        self._tokenizers[key] = (tokenizer, size)
        while len(self._tokenizers) > 1 and sum(size for _, size in self._tokenizers.values()) > MAX_KEPT_BYTES:
            self._tokenizers.popitem(last=False)


def _work(job: Job, kept: _Kept) -> Answer:
    if isinstance(job, Encode):
        tokenizer, special = kept.find(job.key, job.place), job.add_special_tokens
        signal.setitimer(signal.ITIMER_PROF, MAX_ENCODE_CPU_SECONDS)
        if job.keep_last is not None:
            return Answer(
                token_ids=encode_last(tokenizer, job.text, add_special_tokens=special, num_tokens=job.keep_last)
            )
        token_ids = encode_bounded(
            tokenizer, job.text, add_special_tokens=special, max_tokens=job.max_tokens, max_piece_bytes=None
        )
        return Answer(token_ids=token_ids)
    directory = Path(job.place.directory)
    tokenizer = build(directory, Path(job.place.base_directory))
    described = describe(tokenizer, directory, job.num_rows)
    kept.put(described.key, tokenizer, job.place)
    return Answer(described)


def main() -> None:
    """Work until standard input ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    write_frame(out, READY)
    decoder, kept = msgspec.msgpack.Decoder(Job), _Kept()
    while (data := read_frame(sys.stdin.buffer)) is not None:
        job = decoder.decode(data)
        signal.setitimer(signal.ITIMER_PROF, MAX_LOAD_CPU_SECONDS)
        try:
            answer = _work(job, kept)
        except TextFileError as error:
            answer = Answer(error=str(error))
        except BaseException as error:  # noqa: BLE001  a panic of the library is no Exception
            answer = Answer(error=f"{error}" or type(error).__name__)
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(out, msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    main()
