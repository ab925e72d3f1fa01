"""What validation and the API need to know of a model, read from its module tree; no weights are needed for it."""

import inspect
import logging
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorafleet_inference.engine.messages import ExpertsFacts, ModelFacts, ModuleFacts, ModuleKind, WholeFacts
from lorafleet_inference.engine.vocabulary import vocabulary_of
from lorafleet_inference.model import experts, routers
from lorafleet_inference.model.base_files import bare_model, read_base_config, read_generation_config
from lorafleet_inference.model.quantization.linear import QuantizedLinear
from lorafleet_inference.model.rope import length_rope

logger = logging.getLogger(__name__)


def model_facts(model: PreTrainedModel, *, max_model_len: int | None = None) -> ModelFacts:
    """Read the facts of a model; one on the meta device is enough.

    `modules` are the linear layers that LoRA is computed for: all but the output head and layers inside experts.
    `whole_modules` are leaves that map one tensor and have no parameters but weight and bias.
    `max_model_len` shortens what the config says.
    """
    text = model.config.get_text_config()
    rope, longest = length_rope(model, int(getattr(text, "max_position_embeddings", None) or max_model_len or 2048))
    served = min(longest, max_model_len or longest)
    facts = ModelFacts(
        architecture=type(model).__name__,
        model_type=text.model_type,
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        max_model_len=served,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        eos_token_ids=_eos_token_ids(model.generation_config, text),
        modules=tuple(_modules(model)),
        side_modules=tuple(_side_modules(model)),
        whole_modules=tuple(_whole_modules(model)),
        tied_head=_is_tied(model),
        experts=tuple(_experts(model)),
        embedding_size=_embedding_size(model),
        length_rope=rope if rope is not None and served > rope.limit else None,
    )
    return msgspec.structs.replace(facts, eos_token_ids=_known(facts))


def facts_of_folder(path: Path) -> ModelFacts:
    """Read the facts of a saved model from its config alone, without loading weights.

    Raises:
        ConfigError: the folder holds no model that can be served.
    """
    model = bare_model(path, read_base_config(path))
    generation = read_generation_config(path)
    if generation is not None:
        model.generation_config = generation
    return model_facts(model)


def _modules(model: PreTrainedModel) -> list[ModuleFacts]:
    head = model.get_output_embeddings()
    found = []
    for name, module in model.named_modules():
        if module is head or ".experts." in name or routers.is_router(module):
            continue
        if isinstance(module, torch.nn.Linear):
            found.append(ModuleFacts(name, ModuleKind.LINEAR, module.in_features, module.out_features))
        elif type(module) is Conv1D:
            found.append(ModuleFacts(name, ModuleKind.CONV1D, module.weight.shape[0], module.weight.shape[1]))
    return found


def _side_modules(model: PreTrainedModel) -> list[ModuleFacts]:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    found = []
    for name, module in model.named_modules():
        if module is embedding and isinstance(module, torch.nn.Embedding):
            found.append(ModuleFacts(name, ModuleKind.EMBEDDING, module.num_embeddings, module.embedding_dim))
        elif module is head and isinstance(module, torch.nn.Linear):
            found.append(ModuleFacts(name, ModuleKind.LINEAR, module.in_features, module.out_features))
        elif routers.can_adapt(module):
            num_experts, hidden = module.get_parameter("weight").shape
            found.append(ModuleFacts(name, ModuleKind.ROUTER, hidden, num_experts))
    return found


def _embedding_size(model: PreTrainedModel) -> int:
    """Return the width of the hidden states that the head sees; a model may narrow them before it."""
    head = model.get_output_embeddings()
    return int(head.in_features if isinstance(head, torch.nn.Linear) else model.config.get_text_config().hidden_size)


def _is_tied(model: PreTrainedModel) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", head)


def _whole_modules(model: PreTrainedModel) -> list[WholeFacts]:
    found = []
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        shapes = {key: tuple(parameter.shape) for key, parameter in parameters.items()}
        is_leaf = not any(module.children())
        if isinstance(module, QuantizedLinear):
            shapes, is_leaf = {"weight": (module.out_features, module.in_features), **shapes}, True
        if "weight" not in shapes or not shapes.keys() <= {"weight", "bias"} or not is_leaf:
            continue
        maps_one_tensor = len(inspect.signature(type(module).forward).parameters) == 2
        if maps_one_tensor and not routers.is_router(module):
            found.append(WholeFacts(name, tuple(shapes.items())))
    return found


def _experts(model: PreTrainedModel) -> list[ExpertsFacts]:
    found = []
    for name, module in model.named_modules():
        if experts.can_adapt(module):
            stacked = {key: tuple(getattr(module, key).shape) for key in (experts.UP, experts.DOWN)}
            parameters = tuple((key, shape[2], shape[1]) for key, shape in stacked.items())
            found.append(ExpertsFacts(name, stacked[experts.UP][0], parameters))
    return found


def _known(facts: ModelFacts) -> tuple[int, ...]:
    """Return the end tokens that the model can choose."""
    num_tokens = vocabulary_of(facts).num_outputs
    strange = [one for one in facts.eos_token_ids if not 0 <= one < num_tokens]
    if strange:
        named = ", ".join(map(str, strange))
        logger.warning("%s names end tokens that it has not: %s; they are passed over", facts.architecture, named)
    return tuple(one for one in facts.eos_token_ids if one not in strange)


def _eos_token_ids(generation: GenerationConfig | None, config: Any) -> tuple[int, ...]:
    ids = generation.eos_token_id if generation is not None and generation.eos_token_id is not None else None
    ids = config.eos_token_id if ids is None else ids
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
