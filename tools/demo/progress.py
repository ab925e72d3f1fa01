"""Steps with progress: what runs, side by side where it can, and how long each took. Standard library only."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager


class DemoError(Exception):
    """The demo cannot go on; the text says what to do."""


class Progress:
    """Prints one line an event, with the seconds since the start."""

    def __init__(self, started: float | None = None) -> None:
        self.started = time.time() if started is None else started
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print one line."""
        with self._lock:
            print(f"[{time.time() - self.started:6.1f} s] {text}", flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce a step and say how long it took; every 30 s say that it still runs."""
        begin = time.monotonic()
        done = threading.Event()
        self.say(f"{name} …")

        def heartbeat() -> None:
            while not done.wait(30):
                self.say(f"{name} … still at it after {time.monotonic() - begin:.0f} s")

        thread = threading.Thread(target=heartbeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        self.say(f"{name}: done in {time.monotonic() - begin:.1f} s")

    def side_by_side(self, steps: dict[str, Callable[[], None]]) -> None:
        """Run steps at the same time; the first failure is raised after the others were let finish."""

        def run(name: str, action: Callable[[], None]) -> None:
            with self.step(name):
                action()

        with ThreadPoolExecutor(len(steps)) as pool:
            futures = [pool.submit(run, name, action) for name, action in steps.items()]
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done() and (error := future.exception()):
                    raise error
            for future in futures:
                future.result()


def stop(message: str) -> None:
    """End the program with one sentence on stderr."""
    print(f"\n{message}", file=sys.stderr, flush=True)
    raise SystemExit(1)
