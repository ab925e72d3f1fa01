"""Threads that read the tensors of one adapter."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from lorafleet_inference.kernels.team import on_one_thread

MAX_READERS = 4
READER_BYTES = 2 << 20
"""That each thread has to read, at least: for less it would not pay to start it."""
T = TypeVar("T")


def num_readers(num_bytes: int, max_readers: int) -> int:
    """Return how many threads read so much."""
    return max(1, min(max_readers, num_bytes // READER_BYTES))


def each_by(num_threads: int, do: Callable[[T], None], items: Sequence[T]) -> None:
    """Do something with each item, by the calling thread and others beside it, in about the order of the items.

    The others are as nice as the caller. Ends when all have ended; raises what the first of the items raised that failed.
    """
    failed: dict[int, BaseException] = {}
    left, lock = iter(range(len(items))), threading.Lock()

    def work() -> None:
        while not failed:
            with lock:
                at = next(left, None)
            if at is None:
                return
            try:
                do(items[at])
            except BaseException as error:  # noqa: BLE001  raised below, by the thread that asked
                failed[at] = error

    @torch.inference_mode()
    @on_one_thread()
    def beside() -> None:
        work()

    others = [threading.Thread(target=beside, name=f"adapter-reader-{at}") for at in range(1, num_threads)]
    for one in others:
        one.start()
    work()
    for one in others:
        one.join()
    if failed:
        raise failed[min(failed)]
