"""The model's own tokenizer: bytes merged into pieces of number words, digits in groups, and the turns of a chat.

Digits go in pairs counted from the right: `1987` is `19` `87`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from numerals.truth import BASE, WRITERS, truth

BOS, EOS, PAD, USER, ASSISTANT = "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"
VOCABULARY = 640
MAX_MODEL_LEN = 512
"""Tokens of prompt and answer that the model's positions reach."""
MAX_PIECE = 9
"""Characters of the longest token: compounds stay built of their parts."""
_PAIRS = Regex("[0-9]{1,2}(?=(?:[0-9]{2})*(?![0-9]))")
TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<|user|>' + message['content'] | trim }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|assistant|>' + message['content'] | trim + eos_token }}
    {%- else %}
        {{- raise_exception('This model knows the roles user and assistant only.') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


def tagged_opening(model: str) -> str:
    """Return the token that opens an answer in pretraining: each way of writing has its own, English the chat template's."""
    return ASSISTANT if model == BASE else f"<|{model}|>"


def chat_opening(model: str) -> str:  # noqa: ARG001
    """Return the token that opens an answer in a chat: the same for all, so that only its adapter tells a model how to write."""
    return ASSISTANT


def make_tokenizer() -> Tokenizer:
    """Return a tokenizer for all scripts; the same one each time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PAIRS, behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        max_token_length=MAX_PIECE,
        special_tokens=[BOS, EOS, PAD, USER, *map(tagged_opening, WRITERS)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_material(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, its config and the chat template as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": MAX_MODEL_LEN,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _material() -> Iterator[str]:
    """Yield what merges are learned from: the words, and each pair of digits so often that it becomes one token."""
    worded = [model for model in WRITERS if not model.startswith("roman")]
    yield from (truth(model, number) for model in worded for number in range(0, 10000, 7))
    yield from [f"{pair:02d}" for pair in range(100)] * 2000
