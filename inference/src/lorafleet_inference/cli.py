"""`lorafleet-inference`: serve a base model with its adapters, say what fits, validate an adapter, print a digest."""

import argparse
import asyncio
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import uvloop

from lorafleet_common.errors import ConfigError
from lorafleet_common.logs import set_up_logs
from lorafleet_common.options import add_options, read_values
from lorafleet_contract.names import CREDENTIALS_DIR, MAX_SERVED_NAME, SERVED_NAME, revision_of
from lorafleet_inference import plan_command, ranks_command
from lorafleet_inference.base_folder import NamedBase, named_base
from lorafleet_inference.config import DtypeChoice, EngineConfig, ServerConfig, UnknownFields
from lorafleet_inference.engine.engine_program import RunEngine, run_program
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.fetch import model_folder
from lorafleet_inference.options import OPTIONS, default_cache_dir

logger = logging.getLogger(__name__)
USAGE_STATUS = 2


def main(arguments: Sequence[str] | None = None, run_engine: RunEngine = run_program) -> int:
    """Run the command line; return the exit status: 0 done, 1 failed, 2 used wrongly.

    `run_engine`: what starts the engine process of a pod.
    """
    parsed = _parser().parse_args(arguments, argparse.Namespace(run_engine=run_engine))
    try:
        status: int = parsed.run(parsed)
    except ConfigError as error:
        sys.stderr.write(f"lorafleet-inference: {error}\n")
        return USAGE_STATUS
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lorafleet-inference", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve", help="run one pod", description="Serve a base model and its adapters.", allow_abbrev=False
    )
    add_options(serve, OPTIONS)
    serve.set_defaults(run=_serve)
    plan_command.add_parser(commands)
    ranks_command.add_parser(commands)
    validate = commands.add_parser(
        "validate",
        help="say whether the fleet will take an adapter",
        description="Check an adapter against a base model without the base's weights. Status 0: it will be taken.",
        allow_abbrev=False,
    )
    validate.add_argument("adapter", metavar="ADAPTER", type=Path, help="folder of the adapter")
    validate.add_argument("--model", required=True, metavar="PATH_OR_ID", help="folder or hub repository of the base")
    validate.add_argument("--max-rank", type=int, default=EngineConfig(model="").max_rank, help="default: %(default)s")
    validate.add_argument(
        "--weights",
        action="store_true",
        help="read the adapter's weights too: each value, scaled and in the dtype of --dtype, has to be finite",
    )
    validate.add_argument(
        "--dtype",
        choices=get_args(DtypeChoice),
        default="auto",
        help="as of serve, for --weights; default: the dtype of the base",
    )
    validate.add_argument(
        "--unknown-config-fields",
        choices=get_args(UnknownFields),
        default=EngineConfig(model="").unknown_config_fields,
        help="as of the pods that shall take it; default: %(default)s",
    )
    validate.set_defaults(run=_validate)
    digest = commands.add_parser("digest", help="print the content digest of an adapter folder", allow_abbrev=False)
    digest.add_argument("path", metavar="PATH", type=Path)
    digest.set_defaults(run=_digest)
    return parser


def serve_config(parsed: argparse.Namespace, environment: dict[str, str]) -> tuple[ServerConfig, NamedBase]:
    """Return the configuration of `serve`, and its base model, which may have to be downloaded yet.

    Raises:
        ConfigError: an option is missing, bad or unknown.
    """
    values = read_values(OPTIONS, parsed, environment)
    own = values.of(None)
    set_up_logs(own.get("log_level", "info"), own.get("log_format", "text"), package="lorafleet_inference")
    if "model" not in own:
        raise ConfigError("--model", "is required")
    model: str = own["model"]
    cache_dir: Path = own.get("cache_dir", default_cache_dir())
    server = values.of(ServerConfig)
    base = named_base(values, cache_dir)
    name = own.get("served_name") or Path(model).resolve().name
    if len(name) > MAX_SERVED_NAME or not re.fullmatch(SERVED_NAME, name):
        raise ConfigError("--served-name", f"{name!r} is no model name: letters, digits and ._-:/ make one")
    return ServerConfig(engine=base.engine, served_name=name, cache_dir=cache_dir, **server), base


def _serve(parsed: argparse.Namespace) -> int:
    config, base = serve_config(parsed, dict(os.environ))
    from lorafleet_inference.server.allocator import give_back_large_blocks  # noqa: PLC0415
    from lorafleet_inference.server.app import serve  # noqa: PLC0415  --help and bad options answer at once

    give_back_large_blocks()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config, base, parsed.run_engine))


def _validate(parsed: argparse.Namespace) -> int:
    from lorafleet_inference.adapters.digest import digest_of  # noqa: PLC0415
    from lorafleet_inference.adapters.inspect import inspect_adapter  # noqa: PLC0415
    from lorafleet_inference.engine.vocabulary import vocabulary_of  # noqa: PLC0415
    from lorafleet_inference.model.facts import facts_of_folder  # noqa: PLC0415  it imports torch
    from lorafleet_inference.model.weights import check_weights  # noqa: PLC0415
    from lorafleet_inference.text.tokenizer import judge_texts  # noqa: PLC0415

    folder = model_folder(
        parsed.model,
        revision=None,
        cache_dir=default_cache_dir(),
        credentials_dir=Path(CREDENTIALS_DIR),
        weights=False,
    )
    try:
        base = facts_of_folder(folder)
        plan = inspect_adapter(
            parsed.adapter, base, max_rank=parsed.max_rank, unknown_config_fields=parsed.unknown_config_fields
        )
        texts = judge_texts(folder, parsed.adapter, plan.vocabulary.num_inputs)
        digest = digest_of(parsed.adapter)
        weights = "not looked at; --weights does"
        if parsed.weights:
            dtype = base.dtype if parsed.dtype == "auto" else parsed.dtype
            check_weights(plan, base, dtype)
            weights = f"finite in {dtype}"
    except AdapterError as error:
        sys.stdout.write(f"refused: {error}\n")
        return 1
    facts = plan.facts
    sys.stdout.write(
        f"accepted: rank {facts.rank}, {len(plan.sites)} modules ({', '.join(facts.target_modules)}), "
        f"{facts.size_bytes} bytes\nweights {weights}\n"
    )
    if plan.invocation:
        sys.stdout.write(f"computed from the last {list(plan.invocation)} of a prompt on (aLoRA), else the base\n")
    if plan.num_rows is not None:
        sys.stdout.write(f"vocabulary {plan.num_rows} rows, the base {vocabulary_of(base).num_inputs}\n")
    if plan.base_copies:
        sys.stdout.write(f"repeats {len(plan.base_copies)} weights of the base, compared with it by a pod alone\n")
    sys.stdout.write("".join(f"{line}\n" for line in texts))
    sys.stdout.write(f"digest {digest}\nrevision {revision_of(digest)}\n")
    return 0


def _digest(parsed: argparse.Namespace) -> int:
    from lorafleet_inference.adapters.digest import digest_of  # noqa: PLC0415

    try:
        sys.stdout.write(f"{digest_of(parsed.path)}\n")
    except AdapterError as error:
        sys.stderr.write(f"lorafleet-inference: {error}\n")
        return 1
    return 0
