"""Pools hidden states into embeddings: each step gives what its tokens have to say, and the scheduler joins these."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lorafleet_inference.engine.messages import Pooling, PoolingKind
from lorafleet_inference.model.batch import HostBatch
from lorafleet_inference.model.input_batch import Row

logger = logging.getLogger(__name__)
MODULES = "modules.json"
"""Of a model that sentence-transformers saved: the steps from tokens to an embedding, each with its folder."""
POOLING_CONFIG = "1_Pooling/config.json"
"""Where it says how hidden states are pooled, unless `modules.json` names another folder."""
_KINDS = {
    "pooling_mode_cls_token": PoolingKind.CLS,
    "pooling_mode_mean_tokens": PoolingKind.MEAN,
    "pooling_mode_lasttoken": PoolingKind.LAST,
}


def pooling_of(folder: Path) -> Pooling:
    """Return how a base model's own files say that embeddings are made.

    Without such files it is the last token's hidden state, normalised. What they say and cannot be done is told in the log.
    """
    modules = _read(folder / MODULES)
    steps = [step for step in modules if isinstance(step, dict)] if isinstance(modules, list) else []
    of_kind = {str(step.get("type", "")).rpartition(".")[2]: str(step.get("path", "")) for step in steps}
    place = of_kind.get("Pooling", Path(POOLING_CONFIG).parent.name)
    config = _read(folder / place / Path(POOLING_CONFIG).name) if Path(place).name == place else None
    if not isinstance(config, dict):
        return Pooling()
    chosen = [kind for name, kind in _KINDS.items() if config.get(name) is True]
    others = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    unknown = sorted(of_kind.keys() - {"Transformer", "Pooling", "Normalize"})
    if len(chosen) != 1 or len(others) != 1 or unknown:
        logger.warning(
            "%s asks for %s, which is not supported: embeddings are the last token's hidden state, normalised",
            place,
            ", ".join([*others, *unknown]) or "no pooling",
        )
        return Pooling()
    return Pooling(chosen[0], normalize="Normalize" in of_kind or not steps)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


class HiddenStates:
    """Keeps the hidden states of a forward pass, after the last norm, where they are wanted."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model`: with a head, which sees what its decoder gives."""
        self._is_wanted = False
        self._last: torch.Tensor | None = None
        for module in {model.base_model, model.get_decoder()}:  # OPT's head is above its decoder, not its base model
            module.register_forward_hook(self._keep)

    def _keep(self, _: torch.nn.Module, __: Any, output: Any) -> None:
        if self._is_wanted:
            self._last = output[0]

    def want(self, is_wanted: bool) -> None:
        """Say whether those of the next forward pass are."""
        self._is_wanted = is_wanted
        self._last = None

    def take(self) -> torch.Tensor:
        """Return them: [T, hidden size]."""
        hidden, self._last = self._last, None
        assert hidden is not None, "wanted before the forward pass"
        return hidden[0]


@dataclass(frozen=True, slots=True)
class Pooled:
    """What a step gives to embeddings."""

    request_ids: Sequence[str]
    vectors: torch.Tensor
    """[requests, hidden size] float32"""


def pool(hidden: torch.Tensor, host: HostBatch, rows: Sequence[Row]) -> Pooled | None:
    """Return what the tokens of a step are for the embeddings of their requests. hidden [T, hidden size].

    Of a sequence that is computed in parts, the mean gets a sum from each, the others one vector from one of them.
    """
    names: list[str] = []
    vectors: list[torch.Tensor] = []
    for index, (item, row) in enumerate(zip(host.items, rows, strict=True)):
        if row.pooling is None:
            continue
        begin = int(host.begins[index])
        end = begin + item.num_tokens
        match row.pooling.kind:
            case PoolingKind.MEAN:
                vector = hidden[begin:end].float().sum(0)
            case PoolingKind.CLS if item.start == 0:
                vector = hidden[begin].float()
            case PoolingKind.LAST if item.samples:
                vector = hidden[end - 1].float()
            case _:
                continue
        names.append(item.request_id)
        vectors.append(vector)
    return Pooled(names, torch.stack(vectors)) if names else None
