"""Which rows of an adapter's own embedding and head are not the base's: only those are kept, where they are few.

peft writes both matrices in whole when a vocabulary was resized or LoRA lies on them, although most rows are the base's.
"""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.types import AdapterPlan, OwnParameter, OwnRows
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.base_rows import BaseRows
from lorafleet_inference.model.finite import applied, check_finite
from lorafleet_inference.model.ranks.split import Shard

MAX_KEPT_APART = 0.25
"""Of all rows; with more that differ, the whole matrix is kept."""


def settled(plan: AdapterPlan, model: torch.nn.Module, base: BaseRows, shard: Shard | None = None) -> AdapterPlan:
    """Return the plan with own weights of embedding and head as the rows that differ; reads them once.

    `base`: reads the model's. `shard`: what this rank holds of a model on several; of the weights that have to be the base's, it
    compares that.

    Raises:
        AdapterError: ARTIFACT_INVALID the file cannot be read; UNSUPPORTED_ADAPTER a repeated weight of another module
            is not the base's.
    """
    for copied in plan.base_copies:
        differing = _differing(plan.directory / plan.files[0], copied, model, base, shard)
        if differing:
            raise AdapterError(
                Reason.UNSUPPORTED_ADAPTER,
                f"tensor {copied.key} is not the base's own weight (row {differing[0]} differs), and a changed weight under "
                "LoRA is computed on embedding and head only",
            )
    own, rows = [], []
    words = {one for one in (_name_of(model, "get_input_embeddings"), _name_of(model, "get_output_embeddings")) if one}
    for one in plan.own:
        if one.parameter != "weight" or one.module not in words:
            own.append(one)
            continue
        differing = _differing(plan.directory / plan.files[0], one, model, base, shard)
        if len(differing) > MAX_KEPT_APART * _num_rows(model.get_submodule(one.module)):
            own.append(one)
        elif differing:
            rows.append(OwnRows(one.module, one.key, tuple(differing), is_packed=False))
    return replace(plan, own=tuple(own), own_rows=(*rows, *plan.own_rows), base_copies=())


def _num_rows(words: torch.nn.Module) -> int:
    """Of an embedding or a head."""
    if isinstance(words, torch.nn.Embedding):
        return words.num_embeddings
    return words.out_features if isinstance(words, torch.nn.Linear) else len(words.get_parameter("weight"))


def _name_of(model: torch.nn.Module, getter: str) -> str | None:
    wanted = getattr(model, getter)()
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _differing(path: Path, own: OwnParameter, model: torch.nn.Module, base: BaseRows, shard: Shard | None) -> list[int]:
    """Return the rows of a weight that are not the base's. One that is a copy may be rounded to the dtype of the other."""
    found: list[int] = []
    common = 0
    try:
        with safe_open(path, framework="pt") as file:
            rows = file.get_slice(own.key)
            num_rows = rows.get_shape()[0]
            if shard is not None and shard.split_of(own.module) is not None:
                rows = shard.parameter(own.module, own.parameter, rows)
                num_rows = len(rows)
            for at, piece in base.pieces(model.get_submodule(own.module)):
                common = min(at + len(piece), num_rows)
                if common <= at:
                    break
                ours, theirs = piece[: common - at], rows[at:common]
                differs = ours != theirs.to(ours.dtype)
                if own.is_copy:
                    differs &= ours.to(theirs.dtype) != theirs
                found += (differs.any(1).nonzero()[:, 0] + at).tolist()
    except (SafetensorError, OSError) as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{path.name} cannot be read: {error}") from error
    return [*found, *range(common, num_rows)]


def read_rows(plan: AdapterPlan, module: str, width: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the ids [k] int64, growing, and the rows [k, width] float32 of a settled adapter; None where it has none.

    Raises:
        AdapterError: ARTIFACT_INVALID a value is not finite, or the file cannot be read.
    """
    parts = [one for one in plan.own_rows if one.module == module]
    if not parts:
        return None
    token_ids = sorted({token_id for one in parts for token_id in one.token_ids})
    place = {token_id: number for number, token_id in enumerate(token_ids)}
    made = torch.empty(len(token_ids), width)
    path = plan.directory / plan.files[0]
    try:
        with safe_open(path, framework="pt") as file:
            for one in parts:
                rows = file.get_tensor(one.key) if one.is_packed else file.get_slice(one.key)
                own = (
                    rows if one.is_packed else torch.cat([rows[token_id : token_id + 1] for token_id in one.token_ids])
                )
                made[[place[token_id] for token_id in one.token_ids]] = own.float()
    except (SafetensorError, OSError) as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{path.name} cannot be read: {error}") from error
    check_finite(made, f"tensor {parts[0].key}", applied(1.0, torch.float32))
    return torch.tensor(token_ids), made
