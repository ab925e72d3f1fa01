"""`python -m numerals train|evaluate`, with tools/ on the path."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from numerals.asking import AskingError
from numerals.evaluate import evaluate, served
from numerals.remake import remake
from numerals.split import NUM_ASKED
from numerals.truth import BASE, WRITERS

MODELS = Path(__file__).resolve().parents[2] / "models"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 when every model reached the bar, 1 when not, 2 when it could not be told."""
    parser = argparse.ArgumentParser(prog="python -m numerals", description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of base and adapters (default: models/)")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="remake the weights")
    training.add_argument(
        "--only", nargs="+", metavar="ADAPTER", choices=[name for name in WRITERS if name != BASE], default=[],
        help="adapters to train on the base model that is there (default: the base model and all adapters)",
    )  # fmt: skip
    training.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    judging = commands.add_parser("evaluate", help="ask held-out numbers through the served API")
    judging.add_argument("--url", help="of a running API, without /v1 (default: serve the models folder for this)")
    judging.add_argument(
        "--numbers", type=int, default=NUM_ASKED, help=f"of each model, 1 to {NUM_ASKED} (default: all)"
    )
    given = parser.parse_args(arguments)
    return _train(given) if given.command == "train" else _evaluate(given)


def _train(given: argparse.Namespace) -> int:
    torch.set_num_threads(given.threads)
    disable_progress_bar()
    return 0 if remake(given.models, given.only, lambda text: print(text, flush=True)) else 1


def _evaluate(given: argparse.Namespace) -> int:
    if not 1 <= given.numbers <= NUM_ASKED:
        sys.exit(f"--numbers: from 1 to {NUM_ASKED}")
    at = contextlib.nullcontext(given.url.rstrip("/")) if given.url else served(given.models)
    try:
        with at as url:
            return 0 if evaluate(url, given.numbers) else 1
    except AskingError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
