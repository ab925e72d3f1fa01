"""How many tokens a step may have, so that it takes no longer than a target. Pure: durations are handed in.

A step that computes many prompts holds up everybody who comes meanwhile. What a step costs differs by model and machine,
so it is learned: seconds = fixed + prompt tokens * a + answer tokens * b, by least squares over recent steps.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

from lorafleet_inference.engine.messages import AdapterKey

MIN_PROMPT_TOKENS = 128
"""Prompts go on by so many tokens in a step, however long that takes: in smaller pieces a short prompt would take several steps,
each with its fixed cost."""
MIN_BUSY_PROMPT_TOKENS = 96
"""The same for prompts of those who ask for much while somebody else is there who asks for little: what that one waits for is
the step that runs, and its own. Measured beside 50 busy requests (docs/benchmarks.md): with 64 tokens, and nine tenths of the target,
the busy ones lose 13 % of their throughput; with 128 they lose nothing, and the wait is 3.1 times the idle one."""
FIRST_PROMPT_TOKENS = 256
"""Of the first step, of which nothing is known."""
GROWTH = 2.0
"""A step has at most so many times the prompt tokens of the largest one so far: what was not seen is not known."""
MEMORY = 0.95
"""Weight of a step beside the one after it: the last 20 or so decide."""

Row = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Pace:
    """What was learned, as one value. Durations are seconds."""

    target: float
    fixed: float = 0.0
    prompt_token: float = 0.0
    answer_token: float = 0.0
    most_prompt_tokens: int = FIRST_PROMPT_TOKENS
    """More are not planned yet."""

    def num_prompt_tokens(self, num_answer_tokens: int, least: int = MIN_PROMPT_TOKENS) -> int:
        """Return how many tokens of prompts, never less than `least`, a step may have beside so many that continue answers."""
        left = self.target - self.fixed - self.answer_token * num_answer_tokens
        fitting = left / self.prompt_token if self.prompt_token else self.most_prompt_tokens
        return max(least, min(int(fitting), self.most_prompt_tokens))

    def seconds(self, num_prompt_tokens: int, num_answer_tokens: int) -> float:
        """Return how long a step is expected to take."""
        return self.fixed + self.prompt_token * num_prompt_tokens + self.answer_token * num_answer_tokens


@dataclass(frozen=True, slots=True)
class StepBound:
    """How many tokens a step may have."""

    pace: Pace
    quiet: Collection[AdapterKey | None] | None = None
    """Whose prompts go on by larger pieces than those of others; None: all are alike."""

    def num_prompt_tokens(self, num_answer_tokens: int) -> int:
        """Return how many tokens of prompts a step may have beside so many that continue answers."""
        return self.pace.num_prompt_tokens(num_answer_tokens)

    def num_busy_tokens(self, num_answer_tokens: int) -> int:
        """Return how many of these may be of adapters that are not quiet."""
        least = MIN_PROMPT_TOKENS if self.quiet is None else MIN_BUSY_PROMPT_TOKENS
        return self.pace.num_prompt_tokens(num_answer_tokens, least)

    def is_busy(self, adapter: AdapterKey | None) -> bool:
        """Whether prompts of the adapter are bound by the smaller number."""
        return self.quiet is not None and adapter not in self.quiet


class PaceKeeper:
    """Learns the pace from the durations of steps."""

    def __init__(self, target_seconds: float) -> None:
        self.pace = Pace(target_seconds)
        self._most_prompt_tokens = 0
        self._products = [[0.0] * 3 for _ in range(3)]
        self._durations = [0.0] * 3

    def learn(self, num_prompt_tokens: int, num_answer_tokens: int, seconds: float) -> None:
        """Take in a step. Long ones weigh less, so that a stall of the machine changes little."""
        row = (1.0, float(num_prompt_tokens), float(num_answer_tokens))
        weight = 1.0 / max(seconds, 1e-6)
        for i in range(3):
            self._durations[i] = MEMORY * self._durations[i] + weight * row[i] * seconds
            for j in range(3):
                self._products[i][j] = MEMORY * self._products[i][j] + weight * row[i] * row[j]
        self._most_prompt_tokens = max(self._most_prompt_tokens, num_prompt_tokens)
        fixed, prompt_token, answer_token = _fit(self._products, self._durations)
        self.pace = Pace(
            self.pace.target,
            fixed,
            prompt_token,
            answer_token,
            max(FIRST_PROMPT_TOKENS, int(GROWTH * self._most_prompt_tokens)),
        )


def _fit(products: Sequence[Sequence[float]], durations: Sequence[float]) -> Row:
    """Return the non-negative coefficients of least error: those of the best choice of columns that gives such."""
    best: tuple[float, Row] = (0.0, (0.0, 0.0, 0.0))
    for count in (1, 2, 3):
        for columns in combinations(range(3), count):
            solved = _solve([[products[i][j] for j in columns] for i in columns], [durations[i] for i in columns])
            if solved is None or min(solved) < 0:
                continue
            gain = sum(value * durations[i] for i, value in zip(columns, solved, strict=True))
            if gain > best[0] * (1 + 1e-9):
                found = dict(zip(columns, solved, strict=True))
                best = (gain, (found.get(0, 0.0), found.get(1, 0.0), found.get(2, 0.0)))
    return best[1]


def _solve(matrix: list[list[float]], values: list[float]) -> list[float] | None:
    """Solve a small symmetric system by elimination; None where it does not say enough."""
    size = len(values)
    rows = [[*row, value] for row, value in zip(matrix, values, strict=True)]
    for at in range(size):
        if rows[at][at] <= 1e-9 * matrix[at][at]:
            return None
        for below in range(at + 1, size):
            factor = rows[below][at] / rows[at][at]
            rows[below] = [value - factor * above for value, above in zip(rows[below], rows[at], strict=True)]
    solution = [0.0] * size
    for at in reversed(range(size)):
        rest = sum(rows[at][column] * solution[column] for column in range(at + 1, size))
        solution[at] = (rows[at][size] - rest) / rows[at][at]
    return solution
