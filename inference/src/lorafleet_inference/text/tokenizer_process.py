"""The process that tokenises with the tokenizers of adapters: somebody else's programs, whose patterns may never end.

Runs as `confined.py` says; msgpack in the frames. A job that takes too much memory ends the process by an abort. It keeps the
tokenizers that it used last.
"""

from collections import OrderedDict
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from lorafleet_inference.text.confined import Work, limit_cpu, serve
from lorafleet_inference.text.encoding import encode_bounded, encode_last
from lorafleet_inference.text.files import TOKENIZER, TextFileError
from lorafleet_inference.text.own_tokenizer import OwnTokenizer, build, describe, has_tokenizer

MAX_LOAD_CPU_SECONDS = 15.0
"""For reading a tokenizer and making its table; one of 150,000 tokens takes 1.2 s."""
MAX_ENCODE_CPU_SECONDS = 5.0
"""For one text; a prompt of 100,000 tokens takes half a second."""
HURRIED_LOAD_CPU_SECONDS, HURRIED_ENCODE_CPU_SECONDS, HURRIED_SECONDS_PER_BYTE = 3.0, 0.3, 3e-6
"""For a job that others wait for: for reading a tokenizer, for a text, and for each byte of it."""
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


def _load_seconds(_: bytes, is_hurried: bool) -> float:
    return HURRIED_LOAD_CPU_SECONDS if is_hurried else MAX_LOAD_CPU_SECONDS


def _encode_seconds(num_bytes: int, is_hurried: bool) -> float:
    soon = HURRIED_ENCODE_CPU_SECONDS + HURRIED_SECONDS_PER_BYTE * num_bytes
    return min(soon, MAX_ENCODE_CPU_SECONDS) if is_hurried else MAX_ENCODE_CPU_SECONDS


def _work(job: Job, kept: _Kept, encode_seconds: float) -> Answer:
    if isinstance(job, Encode):
        tokenizer, special = kept.find(job.key, job.place), job.add_special_tokens
        limit_cpu(encode_seconds)
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
    decoder, kept = msgspec.msgpack.Decoder(Job), _Kept()

    def do(data: bytes, is_hurried: bool) -> tuple[bytes, bool]:
        try:
            answer = _work(decoder.decode(data), kept, _encode_seconds(len(data), is_hurried))
        except TextFileError as error:
            answer = Answer(error=str(error))
        except BaseException as error:  # noqa: BLE001  a panic of the library is no Exception
            answer = Answer(error=f"{error}" or type(error).__name__)
        return msgspec.msgpack.encode(answer), False

    serve(Work(do, _load_seconds), max_memory_bytes=MAX_MEMORY_BYTES)


if __name__ == "__main__":
    main()
