"""How much of the weights of a base has been read, while they are read."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils.logging import set_tqdm_hook

from lorafleet_inference.adapters.headers import ITEM_BITS, read_header

logger = logging.getLogger(__name__)
Tell = Callable[[int], None]
"""Takes whole per cents, each once, from 0 to 100."""
SAY_SECONDS = 10.0
"""Between two lines of the log."""
_LOADS = "Loading weights"
"""What transformers calls its bar of parameters."""


def nobody(_: int) -> None:
    """Be who needs not be told."""


class Reading:
    """Counts the bytes of tensors by their names in the files; `tell` hears of each whole per cent of them all."""

    def __init__(self, sizes: Mapping[str, int], tell: Tell) -> None:
        self._sizes = sizes
        self._left = set(sizes)
        self._total = sum(sizes.values())
        self._read = 0
        self._percent = 0
        self._tell = tell
        self._say_at = time.monotonic() + SAY_SECONDS
        tell(0)

    def have_read(self, names: Iterable[str]) -> None:
        """Count these tensors, each once; names that are not in the files count nothing."""
        for name in names:
            if name in self._left:
                self._left.remove(name)
                self._read += self._sizes[name]
        percent = 100 * self._read // self._total if self._total else 100
        if percent <= self._percent:
            return
        self._percent = percent
        self._tell(percent)
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + SAY_SECONDS
            logger.info("loading the base model: %d %% of %.1f GB", percent, self._total / 1e9)

    def end(self) -> None:
        """Count what is left: tensors that the model does not have."""
        self.have_read(tuple(self._left))


def sizes_of(places: Mapping[str, Path]) -> dict[str, int]:
    """Return the bytes of each tensor, by the headers of the files."""
    sizes: dict[str, int] = {}
    for path in set(places.values()):
        for name, facts in read_header(path).items():
            size = ITEM_BITS.get(facts.dtype, 8)
            for length in facts.shape:
                size *= length
            sizes[name] = size // 8
    return {name: sizes[name] for name in places}


@contextmanager
def counting(reading: Reading) -> Iterator[None]:
    """While this is open, what transformers reads of a model is counted."""

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("desc") != _LOADS:
            return factory(*args, **options)
        parameters, *others = args
        return factory(_counted(parameters, reading), *others, **{"total": len(parameters), **options})

    before = set_tqdm_hook(hook)
    try:
        yield
    finally:
        set_tqdm_hook(before)


def _counted(parameters: Iterable[tuple[str, Any]], reading: Reading) -> Iterator[tuple[str, Any]]:
    """Yield each parameter; it is read when the next is asked for."""
    for name, mapping in parameters:
        yield name, mapping
        reading.have_read(one for some in mapping.layer_targets.values() for one in some)


class Slowest:
    """The least of what several ranks have read."""

    def __init__(self, num_ranks: int, tell: Tell) -> None:
        self._percents = [0] * num_ranks
        self._told = -1
        self._tell = tell
        self._lock = threading.Lock()

    def tell(self, rank: int, percent: int) -> None:
        """Note how much a rank has read; ranks tell from threads of their own."""
        with self._lock:
            self._percents[rank] = percent
            least = min(self._percents)
            if least > self._told:
                self._told = least
                self._tell(least)
