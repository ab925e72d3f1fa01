"""`lorafleet-inference plan`: whether a base model, its adapters and its requests fit on a GPU, before one is asked for."""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lorafleet_common.errors import ConfigError
from lorafleet_contract.names import CREDENTIALS_DIR
from lorafleet_contract.quantities import quantity_bytes
from lorafleet_inference.cards import CARDS, Card
from lorafleet_inference.config import GIB, MAX_RANK, DtypeChoice, EngineConfig, KvCacheDtype, Quantization
from lorafleet_inference.fetch import model_folder
from lorafleet_inference.options import default_cache_dir

if TYPE_CHECKING:  # it imports torch
    from lorafleet_inference.model.budget import Budget, Wish
    from lorafleet_inference.model.dry_run import ModelSize

_DEFAULTS = EngineConfig(model="")
_DEFAULT_CONTEXT = 4096
MIB, KIB = 1 << 20, 1 << 10


def add_parser(commands: Any) -> None:
    """Add the command to the program's."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="say what fits on a GPU",
        description="Reckon from the config of a base model alone what its weights, adapters and requests take of a GPU, and the "
        "least time of a step. Status 0: it fits.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", required=True, metavar="PATH_OR_ID", help="folder or hub repository; no weights are read"
    )
    parser.add_argument("--gpu", choices=sorted(CARDS), default="h100-80", help="default: %(default)s")
    parser.add_argument("--gpu-memory", type=_quantity, metavar="QUANTITY", help="instead of what --gpu has, e.g. 40Gi")
    parser.add_argument(
        "--adapters", type=_positive, default=_DEFAULTS.max_resident_adapters, metavar="NUMBER",
        help="adapters in the GPU's memory at the same time; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--rank", type=_rank, default=16, help="of each of them; default: %(default)s")
    parser.add_argument(
        "--target-modules", type=_names, metavar="NAME,...",
        help="that each of them changes, as in its adapter_config.json, e.g. q_proj,v_proj; default: all linear modules",
    )  # fmt: skip
    parser.add_argument(
        "--context", type=_positive, default=_DEFAULT_CONTEXT, metavar="TOKENS",
        help="of each request, prompt and answer together; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=get_args(DtypeChoice), default="auto", help="as of serve")
    parser.add_argument("--quantization", choices=get_args(Quantization), help="as of serve; default: as the base is")
    parser.add_argument("--kv-cache-dtype", choices=get_args(KvCacheDtype), default="auto", help="as of serve")
    for name, default in (("tokens", _DEFAULTS.max_batch_tokens), ("requests", _DEFAULTS.max_batch_requests)):
        parser.add_argument(
            f"--max-batch-{name}",
            type=_positive,
            default=default,
            metavar="NUMBER",
            help="as of serve; default: %(default)s",
        )
    parser.add_argument(
        "--tensor-parallel-size", type=_positive, default=_DEFAULTS.tensor_parallel_size, metavar="NUMBER",
        help="as of serve: GPUs that the model is split among; what is said is of each. Default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--speculative-model",
        metavar="PATH_OR_ID",
        help="as of serve: its weights, and its KV beside that of the model",
    )
    parser.add_argument("--json", action="store_true", help="print bytes and seconds as JSON")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the plan; return 0 where a request fits."""
    from lorafleet_inference.model.budget import Wish, budget  # noqa: PLC0415  it imports torch
    from lorafleet_inference.model.dry_run import model_size  # noqa: PLC0415

    folder = _folder(parsed.model)
    size = model_size(
        folder,
        dtype=parsed.dtype,
        max_batch_tokens=parsed.max_batch_tokens,
        max_batch_requests=parsed.max_batch_requests,
        quantization=parsed.quantization,
        num_ranks=parsed.tensor_parallel_size,
    )
    draft = None
    if parsed.speculative_model is not None:
        draft = model_size(
            _folder(parsed.speculative_model, option="--speculative-model"),
            dtype=parsed.dtype,
            max_batch_tokens=parsed.max_batch_tokens,
            max_batch_requests=parsed.max_batch_requests,
        )
    longest = size.facts.max_model_len
    if parsed.context > longest:
        raise ConfigError(
            "--context", f"{parsed.context} tokens are more than the {longest} that the model is made for"
        )
    wish = Wish(
        num_adapters=parsed.adapters,
        rank=parsed.rank,
        target_modules=parsed.target_modules,
        context=parsed.context,
        max_requests=parsed.max_batch_requests,
        kv_dtype=parsed.kv_cache_dtype,
    )
    found = budget(size, _card(parsed), wish, draft)
    if parsed.json:
        text = json.dumps(
            asdict(found) | {"kv_cache": found.memory.kv_cache, "reserve": found.memory.reserve}, indent=2
        )
    else:
        text = "\n".join(_lines(size, found, wish, parsed))
    sys.stdout.write(f"{text}\n")
    return 0 if found.num_requests else 1


def _folder(model: str, option: str = "--model") -> Path:
    return model_folder(
        model,
        revision=None,
        cache_dir=default_cache_dir(),
        credentials_dir=Path(CREDENTIALS_DIR),
        weights=False,
        option=option,
    )


def _card(parsed: argparse.Namespace) -> Card:
    card = CARDS[parsed.gpu]
    return card if parsed.gpu_memory is None else Card(parsed.gpu_memory, card.bytes_per_second)


def _lines(size: "ModelSize", found: "Budget", wish: "Wish", parsed: argparse.Namespace) -> Iterator[str]:
    facts, memory, card, num_ranks = size.facts, found.memory, _card(parsed), parsed.tensor_parallel_size
    yield f"{facts.architecture} in {facts.dtype}, {facts.num_layers} layers, up to {facts.max_model_len} tokens"
    if size.quantization is not None:
        yield f"linear layers quantised: {size.quantization}"
    each_gpu = f"each of {num_ranks} {parsed.gpu}" if num_ranks > 1 else parsed.gpu
    yield f"on {each_gpu}: {card.memory_bytes / GIB:.1f} GiB at {card.bytes_per_second / 1e12:g} TB/s"
    yield ""
    yield f"{'':12}{'GiB':>9}{'part':>9}"
    where = "" if wish.target_modules is None else f" on {', '.join(wish.target_modules)}"
    each = f"{wish.num_adapters} of rank {wish.rank}{where}, {found.adapter_bytes / MIB:.1f} MiB each"
    rows = (
        ("weights", memory.weights, f"{found.draft_bytes / GIB:.2f} of the draft model" if found.draft_bytes else ""),
        ("adapters", memory.adapters, each),
        ("activations", memory.activations, "of the largest step"),
        ("captured", memory.graphs, "of steps that are replayed, about"),
        ("driver", memory.other, "about"),
        ("left free", memory.reserve, ""),
        ("KV cache", memory.kv_cache, f"{found.num_kv_tokens} tokens of {found.kv_token_bytes / KIB:g} KiB"),
    )
    for name, num_bytes, note in rows:
        yield f"{name:12}{num_bytes / GIB:9.2f}{num_bytes / memory.total:9.1%}   {note}".rstrip()
    yield ""
    if not found.num_requests:
        yield (
            f"does not fit: no request of {wish.context} tokens. Take fewer --adapters or a smaller --rank, --context or "
            "--max-batch-tokens, or a larger GPU."
        )
        return
    yield f"{found.num_requests} requests of {wish.context} tokens at once"
    yield ""
    yield "a step of one token for each request takes at least"
    yield f"{'requests':>12}{'adapters':>10}{'GB read':>10}{'ms':>9}{'tokens/s':>10}"
    for floor in found.floors:
        rate = floor.num_requests / floor.seconds
        yield (
            f"{floor.num_requests:12}{floor.num_adapters:10}{floor.num_bytes / 1e9:10.2f}{1e3 * floor.seconds:9.2f}{rate:10.0f}"
        )
    yield ""
    yield "as fields of a BaseModelDeployment"
    lora = f"maxResidentAdapters: {wish.num_adapters}, maxRank: {wish.rank}, adapterMemory: {math.ceil(memory.adapters / MIB)}Mi"
    quantised = f", quantization: {parsed.quantization}" if parsed.quantization else ""
    kv = f", kvCacheDtype: {parsed.kv_cache_dtype}" if parsed.kv_cache_dtype != "auto" else ""
    ranks = f", device: Cuda, tensorParallelSize: {num_ranks}" if num_ranks > 1 else ""
    yield f"spec: {{engine: {{maxModelLen: {wish.context}{quantised}{kv}{ranks}}}, lora: {{{lora}}}}}"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"an empty name in {text!r}")
    return names


def _rank(text: str) -> int:
    value = _positive(text)
    if value > MAX_RANK:
        raise argparse.ArgumentTypeError(f"{value} is more than {MAX_RANK}")
    return value


def _quantity(text: str) -> int:
    try:
        return quantity_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
