"""The engine process: `python -m lorafleet_inference.engine.process FD`, started by EngineClient.

FD is its end of a socket pair; standard input gives StartEngine as JSON. When the API process goes, it goes.
"""

import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec

from lorafleet_common.collector import pass_over_what_is_there
from lorafleet_common.errors import ConfigError
from lorafleet_common.logs import set_up_logs
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.engine.background import yield_to_events
from lorafleet_inference.engine.channel import EngineEnd, StartEngine
from lorafleet_inference.engine.core import Engine, Inbox, Runner
from lorafleet_inference.engine.drafting import DraftRunner
from lorafleet_inference.engine.grammars import GrammarTokenizer
from lorafleet_inference.engine.messages import EngineFailed, Loading, Shutdown
from lorafleet_inference.engine.ranks import Lost, on_ranks
from lorafleet_inference.engine.steps import StepFailed
from lorafleet_inference.errors import InferenceError
from lorafleet_inference.model.draft import load_runners
from lorafleet_inference.model.loader import check_split, uses_cuda
from lorafleet_inference.text.files import TextFileError
from lorafleet_inference.text.tokenizer_files import load_tokenizer

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Load the model and serve; return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the API process decides
    faulthandler.enable()  # a crash, and the API process's SIGABRT when a step hangs, leave every thread's stack in the log
    start = msgspec.json.decode(sys.stdin.buffer.read(), type=StartEngine)
    set_up_logs(start.log_level, start.log_format, package="lorafleet_inference")
    if not uses_cuda(start.config):
        yield_to_events()
    end = EngineEnd(socket.socket(fileno=int(arguments[0])))
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(end, inbox), name="receiver", daemon=True).start()
    try:
        with running(start, end) as (runner, draft_runner):
            inspect = partial(
                inspect_adapter,
                model=runner.facts,
                max_rank=start.config.max_rank,
                unknown_config_fields=start.config.unknown_config_fields,
            )
            tokenizer = _grammar_tokenizer(start.config.model)
            engine = Engine(
                runner,
                start.config,
                inspect,
                end.send,
                inbox,
                grammar_tokenizer=tokenizer,
                draft_runner=draft_runner,
            )
            pass_over_what_is_there()
            engine.run()
    except ConfigError as error:
        end.send(EngineFailed(error.problem, error.option))
        return 1
    except (InferenceError, StepFailed) as error:
        logger.exception("the engine ends")
        end.send(EngineFailed(str(error)))
        return 1
    except Exception as error:
        logger.exception("the engine ends")
        end.send(EngineFailed(f"{type(error).__name__}: {error}"))
        return 1
    return 0


@contextmanager
def running(start: StartEngine, end: EngineEnd) -> Iterator[tuple[Runner, DraftRunner | None]]:
    """Load the model and yield what computes, on one rank or several, and the draft model beside it.

    Raises:
        ConfigError: the model cannot be served, or not on so many ranks.
    """
    config = start.config

    def tell(percent: int) -> None:
        end.send(Loading(percent))

    if config.tensor_parallel_size == 1:
        runner, draft_runner = load_runners(config, tell=tell)
        runner.prepare()
        if draft_runner is not None:
            draft_runner.prepare()
        yield runner, draft_runner
        return
    check_split(config)

    def lost(why: Lost) -> None:
        """The engine's thread may wait for the rank that is lost, so the process ends from here."""
        logger.error("the engine ends: %s", why.message)
        with suppress(OSError):
            end.send(EngineFailed(why.message, why.option))
        os._exit(1)

    with on_ranks(config, start.log_level, start.log_format, lost, tell=tell) as ranked:
        yield ranked


def _grammar_tokenizer(model: str) -> GrammarTokenizer | None:
    """Return the base model's tokenizer for grammars; None where it cannot be used for them."""
    try:
        return GrammarTokenizer(load_tokenizer(Path(model))[0])
    except (TextFileError, ValueError) as error:
        logger.warning("requests that ask for a form of the answer are refused: %s", error)
        return None


def _receive(end: EngineEnd, inbox: Inbox) -> None:
    """Pass messages on. Without an API process nobody wants an answer, not even of the step that runs."""
    try:
        for message in end.messages():
            inbox.put(message)
            if isinstance(message, Shutdown):
                return
    except Exception:
        logger.exception("what the API process sent cannot be read")
    finally:
        if not end.told_to_end:
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
