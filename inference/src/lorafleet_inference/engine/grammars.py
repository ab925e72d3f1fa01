"""Answers of a given form: compiles grammars beside the steps, and says in each step which tokens may come next.

Grammars are llguidance's. One is compiled once for all requests that have it, by threads that leave Python's lock, and its
requests are scheduled when that is done. The masks of a step are computed while the device computes its logits.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import takewhile

import llguidance
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from lorafleet_inference.engine.background import yield_cores
from lorafleet_inference.engine.plan import TokenMask

logger = logging.getLogger(__name__)
MAX_CACHED = 256
"""Compiled grammars that are kept, the last used ones."""
NUM_COMPILERS = 2
NUM_MASK_THREADS = 4
"""At most; masks of one step are computed side by side."""
MAX_ERROR_CHARS = 500
_END = "<end of grammar>"
_LIMITS = llguidance.LLParserLimits(verbose_errors=False)
"""The library's own, which bound the time of a compilation and of a mask; errors do not repeat the grammar."""

Compiled = llguidance.LLMatcher | str
"""At its beginning, or why there is none."""


class GrammarTokenizer:
    """A tokenizer as grammars need it. Making one takes seconds for a large vocabulary, and keeps Python's lock."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        own = Tokenizer.from_str(tokenizer.to_str())
        own.add_special_tokens([_END])  # which nothing chooses: what ends an answer is known here, not there
        self.end = own.get_vocab(with_added_tokens=True)[_END]
        self.trie = llguidance.LLTokenizer(own.to_str(), eos_token=self.end)


class Constraint:
    """One answer on its way through a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, end_token_ids: Sequence[int], num_tokens: int) -> None:
        self.matcher = matcher
        self.end_token_ids = end_token_ids
        """Tokens that end the answer, and may do so only where the grammar may end."""
        self._num_tokens = num_tokens
        """That the grammar's tokenizer knows: the library gives a matcher up that is asked for others."""
        self._forced: list[int] | None = None
        """None while nobody has asked."""

    def accept(self, token_id: int) -> bool:
        """Take in the next token of the answer; return whether more may follow."""
        self._forced = None
        return self.matcher.consume_token(token_id) and not self.matcher.is_stopped()

    def forced(self) -> Sequence[int]:
        """Return tokens that the grammar leaves no choice about: the text of the next ones, as the tokenizer writes it."""
        if self._forced is None:
            self._forced = self.matcher.compute_ff_tokens()
        return self._forced

    def allowed(self, token_ids: Sequence[int]) -> int:
        """Return how many of these tokens may follow, one after the other."""
        known = list(takewhile(lambda token_id: token_id < self._num_tokens, token_ids))
        number: int = self.matcher.validate_tokens(known)
        return number

    @property
    def problem(self) -> str | None:
        """Why the grammar cannot be followed any more; None where it can, or where the answer is complete."""
        return _message(self.matcher) if self.matcher.is_error() else None


@dataclass(slots=True)
class _Step:
    """The masks of a step."""

    rows: dict[str, int] = field(default_factory=dict)
    """The first one of each request; one follows for each of its draft tokens."""
    masks: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """[rows, ceil(vocabulary / 32)]."""
    done: Future[None] | None = None


class Grammars:
    """Owns compiled grammars and the constraints of requests. Every method is for the engine's thread.

    `post` hands a finished compilation back to the engine's thread, to be called there.
    """

    def __init__(self, tokenizer: GrammarTokenizer | None, post: Callable[[Callable[[], None]], None]) -> None:
        self._tokenizer = tokenizer
        self._post = post
        self._cache: OrderedDict[str, Compiled] = OrderedDict()
        self._waiting: dict[str, list[tuple[str, Callable[[Compiled], None]]]] = {}
        """By grammar: who wants it while it is compiled."""
        self._constraints: dict[str, Constraint] = {}
        self._step = _Step()
        self._compilers = ThreadPoolExecutor(NUM_COMPILERS, "grammar-compiler", initializer=yield_cores)
        self._masks = ThreadPoolExecutor(1, "grammar-masks")
        self._executor = llguidance.LLExecutor(num_threads=NUM_MASK_THREADS)
        self.num_compiled = 0
        self.compile_seconds = 0.0
        """Sum over the compilations since start."""

    @property
    def num_waiting(self) -> int:
        """Requests whose grammar is being compiled."""
        return sum(len(waiting) for waiting in self._waiting.values())

    def compile(self, request_id: str, grammar: str, done: Callable[[str | None], None], ends: Sequence[int]) -> None:
        """Have a request's grammar compiled; `done` gets the reason if it cannot be, at once or later, None if it is.

        `ends`: tokens that end the answer where the grammar may end.
        """

        def take(compiled: Compiled) -> None:
            if isinstance(compiled, str):
                done(compiled)
                return
            self._constraints[request_id] = Constraint(compiled.deep_copy(), ends, num_tokens)
            done(None)

        num_tokens = 0 if self._tokenizer is None else self._tokenizer.trie.vocab_size
        if self._tokenizer is None:
            done("this model's tokenizer cannot be used for grammars")
        elif grammar in self._cache:
            self._cache.move_to_end(grammar)
            take(self._cache[grammar])
        elif grammar in self._waiting:
            self._waiting[grammar].append((request_id, take))
        else:
            self._waiting[grammar] = [(request_id, take)]
            self._compilers.submit(self._compile, self._tokenizer, grammar)

    def cancel(self, request_id: str) -> bool:
        """Forget a request whose grammar is being compiled; return whether it is one."""
        for waiting in self._waiting.values():
            for entry in waiting:
                if entry[0] == request_id:
                    waiting.remove(entry)
                    return True
        return False

    def cancel_all(self) -> list[str]:
        """Forget all whose grammars are being compiled; return their ids."""
        ids = [request_id for waiting in self._waiting.values() for request_id, _ in waiting]
        for waiting in self._waiting.values():
            waiting.clear()
        return ids

    def constraint(self, request_id: str) -> Constraint | None:
        """Return what a request's answer has to follow; None where it is free."""
        return self._constraints.get(request_id)

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._constraints.pop(request_id, None)

    def begin_step(self, drafts: Mapping[str, Sequence[int]]) -> None:
        """Begin to compute which tokens may come next for requests that choose one in this step, and after each of their draft tokens."""
        if self._step.done is not None:
            wait([self._step.done])  # a step that failed has not asked for it, and no matcher can be asked meanwhile
        constraints = {name: self._constraints[name] for name in drafts if name in self._constraints}
        # what has ended meanwhile chooses a token that nobody reads
        constrained = [name for name, one in constraints.items() if not one.matcher.is_stopped()]
        if not constrained or self._tokenizer is None:
            self._step = _Step()
            return
        width = -(-self._tokenizer.trie.vocab_size // 32)
        rows, num_rows = dict[str, int](), 0
        for name in constrained:
            rows[name] = num_rows
            num_rows += 1 + len(drafts[name])
        masks = np.zeros((num_rows, width), np.int32)
        num_bytes = masks.itemsize * width
        plain = [(constraints[name].matcher, row) for name, row in rows.items() if not drafts[name]]
        drafted = [(constraints[name].matcher, row, list(drafts[name])) for name, row in rows.items() if drafts[name]]

        def compute() -> None:  # keeps the masks until it is done, also when another step has begun meanwhile
            if plain:
                self._executor.unsafe_compute_mask_ptr(plain, masks.ctypes.data, num_bytes, num_rows)
            if drafted:  # leaves each matcher as it was
                self._executor.unsafe_compute_mask_ptr_with_draft_token(drafted, masks.ctypes.data, num_bytes, num_rows)

        done = self._masks.submit(compute)
        self._step = _Step(rows, masks, done)

    def mask(self, request_id: str, num_drafted: int = 0) -> TokenMask | None:
        """Return which tokens may come next in the step that was begun, after so many of its draft tokens; None where any may."""
        step = self._step
        row = step.rows.get(request_id)
        if row is None or step.done is None or self._tokenizer is None:
            return None
        step.done.result()
        constraint = self._constraints[request_id]
        if constraint.matcher.is_error():
            return None  # the request ends with the token that comes, whichever it is
        bits: TokenMask = step.masks[row + num_drafted].view(np.uint8).copy()
        may_end = _take_out(bits, self._tokenizer.end)
        if num_drafted and not bits.any():
            return None  # the draft token before completes the answer
        for token_id in constraint.end_token_ids:
            _take_out(bits, token_id)
            if may_end and token_id < 8 * len(bits):
                bits[token_id // 8] |= np.uint8(1 << token_id % 8)
        return bits

    def close(self) -> None:
        """End the threads."""
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self._masks.shutdown(wait=False, cancel_futures=True)

    def _compile(self, tokenizer: GrammarTokenizer, grammar: str) -> None:
        """Runs in a thread."""
        began = time.monotonic()
        try:
            matcher = llguidance.LLMatcher(tokenizer.trie, grammar, log_level=0, limits=_LIMITS)
            compiled: Compiled = _message(matcher) if matcher.is_error() else matcher
        except Exception:
            logger.exception("a grammar of %d characters cannot be compiled", len(grammar))
            compiled = "the grammar cannot be compiled"
        seconds = time.monotonic() - began
        self._post(lambda: self._compiled(grammar, compiled, seconds))

    def _compiled(self, grammar: str, compiled: Compiled, seconds: float) -> None:
        self.num_compiled += 1
        self.compile_seconds += seconds
        self._cache[grammar] = compiled
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        for _, take in self._waiting.pop(grammar):
            take(compiled)


def _take_out(bits: TokenMask, token_id: int) -> bool:
    """Let a token not follow; return whether it might have."""
    if token_id >= 8 * len(bits):
        return False
    one = np.uint8(1 << token_id % 8)
    was_in = bool(bits[token_id // 8] & one)
    bits[token_id // 8] &= ~one
    return was_in


def _message(matcher: llguidance.LLMatcher) -> str:
    """Return why it cannot be followed, without the picture of the place in it."""
    first, *rest = matcher.get_error().strip().splitlines() or ["the grammar cannot be followed"]
    causes = (line.removeprefix("error: ") for line in rest if line.startswith("error: "))
    return " ".join((first, *causes))[:MAX_ERROR_CHARS]
