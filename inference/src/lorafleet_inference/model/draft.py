"""Loads a base model and, where there is one, the draft model that proposes tokens for it."""

import logging
from dataclasses import replace
from pathlib import Path

import msgspec

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.model.checked import LoadedModel
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.ranks.group import Group
from lorafleet_inference.model.reading import Tell, nobody
from lorafleet_inference.model.runner import ModelRunner
from lorafleet_inference.model.sizing import kv_block_bytes
from lorafleet_inference.text.files import TOKENIZER, TextFileError
from lorafleet_inference.text.tokenizer_files import load_tokenizer

logger = logging.getLogger(__name__)
OPTION = "--speculative-model"


def load_runners(
    config: EngineConfig, *, ahead: bool | None = None, group: Group | None = None, tell: Tell = nobody
) -> tuple[ModelRunner, ModelRunner | None]:
    """Load the base, or the first rank's part of it, and its draft model, whole, on the same device.

    `ahead`, `group`: as `ModelRunner`. `tell`: how much of the base is read.

    The KV of both has the same blocks, so that what the base can run can be drafted.

    Raises:
        ConfigError: one of them cannot be served, or they are no pair; the option says which.
    """
    if config.speculative_model is None:
        return ModelRunner(load_model(config, tell=tell), config, ahead=ahead, group=group), None
    check_vocabularies(Path(config.model), Path(config.speculative_model))
    loaded, own = load_model(config, tell=tell), _own_config(config, config.speculative_model)
    draft = _load(own, loaded.facts)
    block_bytes = kv_block_bytes(draft.shapes, draft.dtype.itemsize, own.kv_cache_dtype)
    runner = ModelRunner(loaded, config, ahead=ahead, group=group, beside_block_bytes=block_bytes)
    own = replace(own, kv_cache_memory_bytes=runner.budgets.num_kv_blocks * block_bytes)
    drafting = ModelRunner(draft, own)
    logger.info("%s drafts, with %d bytes of KV", draft.facts.architecture, drafting.budgets.kv_cache_bytes)
    return runner, drafting


def _own_config(config: EngineConfig, folder: str) -> EngineConfig:
    """Return what a draft model is loaded with: no adapters, on one rank, as its files have it."""
    return replace(
        config,
        model=folder,
        quantization=None,
        tensor_parallel_size=1,
        hosts=1,
        decoder="auto",
        max_model_len=None,
        max_resident_adapters=1,
        max_rank=1,
        adapter_memory_bytes=None,
        host_cache_bytes=1,
        speculative_tokens=0,
        speculative_model=None,
    )


def _load(config: EngineConfig, base: ModelFacts) -> LoadedModel:
    try:
        draft = load_model(config)
    except ConfigError as error:
        raise ConfigError(OPTION, error.problem) from error
    if draft.facts.length_rope is not None:
        problem = (
            f"{draft.facts.architecture} has rotary frequencies that change with the length; such models draft nothing"
        )
        raise ConfigError(OPTION, problem)
    if not _has_texts(config.model) and draft.facts.vocab_size != base.vocab_size:
        problem = f"its vocabulary has {draft.facts.vocab_size} tokens, and that of the base {base.vocab_size}"
        raise ConfigError(OPTION, problem)
    longest = min(draft.facts.max_model_len, base.max_model_len)
    return replace(draft, facts=msgspec.structs.replace(draft.facts, max_model_len=longest))


def _has_texts(folder: str) -> bool:
    return (Path(folder) / TOKENIZER).is_file()


def check_vocabularies(base: Path, draft: Path) -> None:
    """See whether two models mean the same by each token id, as far as their tokenizers say it.

    Raises:
        ConfigError: one id is another token, or one of them alone has a tokenizer.
    """
    places = [base / TOKENIZER, draft / TOKENIZER]
    if not any(place.is_file() for place in places):
        return
    try:
        ours, theirs = (load_tokenizer(folder)[0].get_vocab(with_added_tokens=True) for folder in (base, draft))
    except TextFileError as error:
        raise ConfigError(OPTION, f"its vocabulary cannot be compared with the base's: {error}") from error
    if ours == theirs:
        return
    token = min(
        (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
        key=lambda one: (min(ours.get(one, MANY), theirs.get(one, MANY)), one),
    )
    raise ConfigError(
        OPTION,
        f"its vocabulary is not the base's: {token!r} is {_named(ours.get(token))} of the base, and {_named(theirs.get(token))} of it",
    )


MANY = 1 << 62


def _named(token_id: int | None) -> str:
    return "no token" if token_id is None else f"token {token_id}"
