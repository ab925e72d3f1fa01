"""What an adapter makes of the rows of the input embedding and the output head: other ones, more, or fewer. Pure.

Follows peft 0.21 and transformers' `resize_token_embeddings`. A weight that the file has for a module of `modules_to_save` is
the module's own. Any other is written into the base's parameter, which embedding and head share where they are tied; so is
`original_module` beside the module's own. `trainable_token_indices` replaces single rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import CONFIG
from lorafleet_inference.adapters.peft_config import PeftConfig
from lorafleet_inference.adapters.tensors import ModuleTensors, Part, Tensor
from lorafleet_inference.adapters.types import OwnParameter, OwnRows
from lorafleet_inference.engine.messages import ModelFacts, ModuleFacts, ModuleKind
from lorafleet_inference.engine.vocabulary import Vocabulary, vocabulary_of
from lorafleet_inference.errors import AdapterError

_TAKEN = frozenset({Part.WEIGHT, Part.BASE_COPY, Part.ORIGINAL, Part.SAVED, Part.SAVED_BIAS, Part.TOKENS})
_IGNORED = frozenset({Part.ORIGINAL_BIAS})


@dataclass(frozen=True, slots=True)
class Taken:
    """Embedding and head as the adapter has them."""

    rest: list[ModuleTensors]
    """What else the file has: other modules, LoRA and biases."""
    facts: ModelFacts
    """Of the base with as many rows as the adapter has."""
    vocabulary: Vocabulary
    num_rows: int | None = None
    """Where it is another number than the base's."""
    own: tuple[OwnParameter, ...] = ()
    rows: tuple[OwnRows, ...] = ()


def take_rows(found: Sequence[ModuleTensors], model: ModelFacts, config: PeftConfig) -> Taken:
    """Return what an adapter makes of embedding and head.

    Raises:
        AdapterError: ARTIFACT_INVALID, BASE_MODEL_MISMATCH, UNSUPPORTED_ADAPTER; names the tensor or the field.
    """
    side = {one.name: one for one in words_of(model)}
    by_name = {one.name: one for one in found if one.name in side}
    tokens = _tokens(by_name, model, config)
    sources = _sources(by_name, model, config, set(tokens))
    num_rows = _num_rows(sources, tokens, side)
    if num_rows is not None:
        _check_complete(num_rows, sources, tokens, by_name, model)
    facts = model if num_rows is None else resized(model, num_rows)
    for rows in tokens.values():
        _check_tokens(rows, by_name, model, num_rows)
    own = [
        OwnParameter(name, "weight", source.tensor.key, is_copy=source.is_copy)
        for name, source in sources.items()
        if _check_shape(source.tensor, name, facts)
    ]
    rest = [left for tensors in found if (left := _without_taken(tensors, side)) is not None]
    vocabulary = vocabulary_of(model) if num_rows is None else Vocabulary(num_rows, num_rows)
    return Taken(rest, facts, vocabulary, num_rows, tuple(own), tuple(tokens.values()))


def resized(model: ModelFacts, num_rows: int) -> ModelFacts:
    """Return the facts of a base whose embedding and head have another number of rows."""
    names = {one.name for one in words_of(model)}
    side = tuple(
        msgspec.structs.replace(one, **{_axis(one): num_rows}) if one.name in names else one
        for one in model.side_modules
    )
    whole = tuple(
        msgspec.structs.replace(one, parameters=tuple((key, (num_rows, *shape[1:])) for key, shape in one.parameters))
        if one.name in names
        else one
        for one in model.whole_modules
    )
    return msgspec.structs.replace(model, side_modules=side, whole_modules=whole)


def words_of(model: ModelFacts) -> tuple[ModuleFacts, ...]:
    """Return the embedding and the head, in the order of the base's modules."""
    return tuple(one for one in model.side_modules if one.kind is not ModuleKind.ROUTER)


def _axis(module: ModuleFacts) -> str:
    return "in_features" if module.kind is ModuleKind.EMBEDDING else "out_features"


def num_rows_of(module: ModuleFacts) -> int:
    """Return the rows of an embedding or a head."""
    return module.in_features if module.kind is ModuleKind.EMBEDDING else module.out_features


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a module's weight comes from, if not from the base."""

    tensor: Tensor
    is_copy: bool


def _sources(
    by_name: Mapping[str, ModuleTensors], model: ModelFacts, config: PeftConfig, with_tokens: set[str]
) -> dict[str, _Source]:
    """Return where the weights of embedding and head come from, by module."""
    names = [one.name for one in words_of(model)]
    saved = {name for name in names if any(name.endswith(one) for one in config.modules_to_save or ())}
    written: dict[str, _Source] = {}
    for name, tensors in by_name.items():
        if name in saved and tensors.is_lora:
            raise AdapterError(
                Reason.UNSUPPORTED_ADAPTER, f"tensor {tensors.key}: {name} has LoRA and is in modules_to_save"
            )
        is_wrapped = tensors.is_lora or name in with_tokens
        part = Part.ORIGINAL if name in saved else Part.BASE_COPY if is_wrapped else Part.WEIGHT
        for other in {Part.ORIGINAL, Part.BASE_COPY, Part.WEIGHT} - {part}:
            if other in tensors.parts and not (name in saved and other is Part.WEIGHT):
                raise AdapterError(
                    Reason.ARTIFACT_INVALID,
                    f"tensor {tensors.parts[other].key} is of a module that the adapter does not change like that, so PEFT "
                    "would pass it over",
                )
        if part in tensors.parts:
            written[name] = _Source(tensors.parts[part], is_copy=is_wrapped)
    if model.tied_head and written:  # into one parameter, in the order of the modules
        written = dict.fromkeys(names, written[max(written, key=names.index)])
    sources = {name: source for name, source in written.items() if name not in saved}
    for name in saved:
        own = by_name.get(name)
        if own is not None and Part.WEIGHT in own.parts:
            sources[name] = _Source(own.parts[Part.WEIGHT], is_copy=False)
        else:
            raise AdapterError(
                Reason.ARTIFACT_INVALID, f"{CONFIG}: modules_to_save has {name}, and the file no weight of it"
            )
    return {name: sources[name] for name in names if name in sources}


def _tokens(by_name: Mapping[str, ModuleTensors], model: ModelFacts, config: PeftConfig) -> dict[str, OwnRows]:
    """Return the rows that `trainable_token_indices` replaces, by module."""
    names = [one.name for one in words_of(model)]
    embedding = next((one.name for one in words_of(model) if one.kind is ModuleKind.EMBEDDING), None)
    asked = config.trainable_token_indices or {}
    by_target = {embedding or "the embedding": asked} if isinstance(asked, list) else asked
    wanted: dict[str, tuple[int, ...]] = {}
    for target, indices in by_target.items():
        matches = [name for name in names if name.endswith(target)]
        if not matches:
            raise AdapterError(
                Reason.UNSUPPORTED_ADAPTER,
                f"{CONFIG}: trainable_token_indices of {target}, which is no embedding or head",
            )
        wanted |= dict.fromkeys(matches, tuple(indices))
    rows = {}
    for name, token_ids in wanted.items():
        tensors = by_name.get(name)
        if tensors is not None and Part.TOKENS in tensors.parts:
            rows[name] = OwnRows(name, tensors.parts[Part.TOKENS].key, token_ids, is_packed=True)
    if model.tied_head and embedding in rows:  # the head follows unless it has others
        shared = rows[embedding]
        for name in names:
            if wanted.get(name, shared.token_ids) == shared.token_ids:
                rows.setdefault(name, replace(shared, module=name))
    for name, tensors in by_name.items():
        if Part.TOKENS in tensors.parts and name not in rows:  # where the head follows, peft writes them twice
            raise AdapterError(
                Reason.ARTIFACT_INVALID,
                f"tensor {tensors.parts[Part.TOKENS].key}: {CONFIG} does not speak of it (trainable_token_indices)",
            )
    missing = wanted.keys() - rows.keys()
    if missing:
        raise AdapterError(
            Reason.ARTIFACT_INVALID, f"{CONFIG}: trainable_token_indices has {min(missing)}, and the file no rows of it"
        )
    return rows


def _num_rows(
    sources: Mapping[str, _Source], tokens: Mapping[str, OwnRows], side: Mapping[str, ModuleFacts]
) -> int | None:
    """Return how many rows embedding and head have if not as many as the base's."""
    for name, source in sources.items():
        rows = source.tensor.facts.shape[0] if source.tensor.facts.shape else 0
        if rows != num_rows_of(side[name]):
            return rows
    ends = [max(rows.token_ids) + 1 for name, rows in tokens.items() if rows.token_ids]
    longest = max(ends, default=0)
    return longest if any(longest > num_rows_of(one) for one in side.values()) and ends else None


def _check_complete(
    num_rows: int,
    sources: Mapping[str, _Source],
    tokens: Mapping[str, OwnRows],
    by_name: Mapping[str, ModuleTensors],
    model: ModelFacts,
) -> None:
    """All rows beyond the base's are in the file: PEFT would leave others as they were drawn."""
    if {one.kind is ModuleKind.EMBEDDING for one in words_of(model)} != {True, False}:
        raise AdapterError(Reason.UNSUPPORTED_ADAPTER, f"{num_rows} rows on a base without a plain embedding and head")
    whole = {one.name: dict(one.parameters) for one in model.whole_modules}
    for module in words_of(model):
        name, before = module.name, num_rows_of(module)
        if num_rows <= before or name in sources:
            continue
        known = set(tokens[name].token_ids) if name in tokens else set()
        if not known.issuperset(range(before, num_rows)):
            raise AdapterError(
                Reason.BASE_MODEL_MISMATCH,
                f"the adapter has {num_rows} rows of the vocabulary, the base {before}, and the file no weight of {name} for "
                "those that were added",
            )
    for module in words_of(model):
        tensors = by_name.get(module.name)
        has_bias = "bias" in whole.get(module.name, {})
        if has_bias and num_rows > num_rows_of(module) and (tensors is None or Part.BIAS not in tensors.parts):
            raise AdapterError(
                Reason.BASE_MODEL_MISMATCH, f"the file has {num_rows} rows of {module.name} and no bias of it"
            )


def _check_tokens(rows: OwnRows, by_name: Mapping[str, ModuleTensors], model: ModelFacts, num_rows: int | None) -> None:
    module = next(one for one in words_of(model) if one.name == rows.module)
    width = module.out_features if module.kind is ModuleKind.EMBEDDING else module.in_features
    most = num_rows_of(module) if num_rows is None else num_rows
    tensor = next(
        tensors.parts[Part.TOKENS]
        for tensors in by_name.values()
        if Part.TOKENS in tensors.parts and tensors.parts[Part.TOKENS].key == rows.key
    )
    if tensor.facts.shape != (len(rows.token_ids), width):
        raise AdapterError(
            Reason.ARTIFACT_INVALID,
            f"tensor {tensor.key} has shape {list(tensor.facts.shape)}, and {CONFIG} says {[len(rows.token_ids), width]}",
        )
    if not all(0 <= one < most for one in rows.token_ids) or len(set(rows.token_ids)) < len(rows.token_ids):
        raise AdapterError(
            Reason.BASE_MODEL_MISMATCH, f"{CONFIG}: trainable_token_indices has ids twice, or not below the {most} rows"
        )
    whole = next((one for one in model.whole_modules if one.name == rows.module), None)
    if whole is not None and "bias" in dict(whole.parameters):
        raise AdapterError(
            Reason.UNSUPPORTED_ADAPTER,
            f"{CONFIG}: trainable_token_indices of {rows.module}, whose bias PEFT would leave out",
        )


def _check_shape(tensor: Tensor, name: str, facts: ModelFacts) -> bool:
    shapes = {one.name: dict(one.parameters).get("weight") for one in facts.whole_modules}
    wanted = shapes.get(name)
    if wanted is None:
        raise AdapterError(
            Reason.BASE_MODEL_MISMATCH,
            f"tensor {tensor.key}: the base has no weight {name} that an adapter may replace",
        )
    if tensor.facts.shape != wanted:
        raise AdapterError(
            Reason.BASE_MODEL_MISMATCH,
            f"tensor {tensor.key} has shape {list(tensor.facts.shape)}; the base needs {list(wanted)}",
        )
    return True


def _without_taken(tensors: ModuleTensors, side: Mapping[str, ModuleFacts]) -> ModuleTensors | None:
    if tensors.name not in side:
        return tensors
    left = {part: tensor for part, tensor in tensors.parts.items() if part not in _TAKEN | _IGNORED}
    return ModuleTensors(tensors.name, left) if left else None
