"""The thread that reads and copies adapters beside the steps, and what it reads and copies them with."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.engine.background import yield_cores
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.errors import AdapterError

logger = logging.getLogger(__name__)
T = TypeVar("T")
OutcomeT = TypeVar("OutcomeT")
SlabT = TypeVar("SlabT")


class AdapterDevice(Protocol[SlabT]):
    """Where adapters are read and copied: the model runner, seen from here. A slab is an adapter in host memory."""

    def settle(self, plan: AdapterPlan) -> AdapterPlan:
        """Compare what an adapter repeats of the base with it; raises AdapterError."""

    def load_slab(self, plan: AdapterPlan) -> SlabT:
        """Read a settled adapter from disk; raises AdapterError."""

    def drop_slab(self, slab: SlabT) -> None:
        """Use the memory of a slab again, which nobody copies any more."""

    def num_pages(self, plan: AdapterPlan) -> int:
        """Rank pages that an adapter takes."""

    def slab_bytes(self, plan: AdapterPlan) -> int:
        """Size of its slab."""

    def install(self, key: AdapterKey, pages: tuple[int, ...], slab: SlabT) -> None:
        """Copy a slab to pages of the device."""

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter of the device."""


class LoadThread(Generic[OutcomeT]):
    """Runs jobs one after the other. `post` hands a finished one back to the engine's thread, to be called there."""

    def __init__(self, post: Callable[[Callable[[], OutcomeT]], None]) -> None:
        self._post = post
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader", initializer=yield_cores)

    def close(self) -> None:
        """Let the thread finish what it does."""
        self._thread.shutdown(cancel_futures=True)

    def run(self, job: Callable[[], T], done: Callable[[T | AdapterError], OutcomeT]) -> None:
        """Have a job done, and `done` called with its result or with what went wrong."""

        def run() -> None:
            result: T | AdapterError
            try:
                result = job()
            except AdapterError as error:
                result = error
            except MemoryError as error:
                result = AdapterError(Reason.OUT_OF_MEMORY, f"no memory for the adapter: {error}")
            except Exception as error:  # an adapter must never end the engine
                logger.exception("an adapter could not be loaded")
                result = AdapterError(Reason.LOAD_FAILED, f"{type(error).__name__}: {error}")
            self._post(lambda: done(result))

        self._thread.submit(run)
