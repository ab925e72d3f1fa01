"""The tokenizer of a model folder behaves as transformers' own does."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from support.tokenizers_made import byte_fallback, byte_level
from transformers import PreTrainedTokenizerFast

from lorafleet_inference.errors import AdapterError, InvalidValue
from lorafleet_inference.text.conversation import Conversation
from lorafleet_inference.text.files import TextFileError
from lorafleet_inference.text.tokenizer import THREAD_CHARS, Text

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant:{% endif %}"
)


def folder(tmp_path: Path, config: dict[str, object], *, template_file: bool = False) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    named = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**named, **config}))
    if template_file:
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path


@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_bos_and_eos_are_added_as_transformers_adds_them(tmp_path: Path, config: dict[str, object]) -> None:
    path = folder(tmp_path, config)
    text, reference = Text.load(path), PreTrainedTokenizerFast.from_pretrained(path)
    for sample in ("one two", "", "<|user|>hé 😀", "</s>"):
        assert list(text.encode_now(sample, add_special_tokens=True)) == reference(sample)["input_ids"]
        bare = reference(sample, add_special_tokens=False)["input_ids"]
        assert list(text.encode_now(sample, add_special_tokens=False)) == bare


async def test_long_texts_give_the_same_tokens(tmp_path: Path) -> None:
    text = Text.load(folder(tmp_path, {}))
    long = "seven eight " * THREAD_CHARS
    whole = text.encode_now(long, add_special_tokens=True)
    assert await text.encode(long, add_special_tokens=True, max_tokens=len(whole), field="prompt") == whole


@pytest.mark.parametrize("in_file", [True, False])
async def test_chats_render_as_transformers_renders_them(tmp_path: Path, in_file: bool) -> None:
    path = folder(tmp_path, {} if in_file else {"chat_template": TEMPLATE}, template_file=in_file)
    text, reference = Text.load(path), PreTrainedTokenizerFast.from_pretrained(path)
    messages = [{"role": "system", "content": "Count."}, {"role": "user", "content": "seven <b>&"}]
    rendered = await (await text.templates.find(None, None)).render(Conversation(tuple(messages)))
    expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == expected
    assert (
        list(text.encode_now(rendered, add_special_tokens=False))
        == reference(expected, add_special_tokens=False)["input_ids"]
    )


async def test_an_adapter_may_bring_its_own_template(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with closing(Text.load(folder(tmp_path / "base", {}, template_file=True))) as text:
        await _ask_with_templates_of_adapters(text, tmp_path)


async def _ask_with_templates_of_adapters(text: Text, tmp_path: Path) -> None:
    own, plain = tmp_path / "own", tmp_path / "plain"
    own.mkdir()
    plain.mkdir()
    (own / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ eos_token }}{{ messages[0]['content'] }}"})
    )
    messages = [{"role": "user", "content": "hi"}]
    assert await (await text.templates.find("sha256:1", own)).render(Conversation(tuple(messages))) == "</s>hi"
    of_base = await (await text.templates.find(None, None)).render(Conversation(tuple(messages)))
    assert await (await text.templates.find("sha256:2", plain)).render(Conversation(tuple(messages))) == of_base


async def test_an_adapters_own_special_tokens_go_into_its_template_and_end_its_answers(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    own = tmp_path / "own"
    own.mkdir()
    config = {"eos_token": "<|user|>", "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"}
    (own / "tokenizer_config.json").write_text(json.dumps(config))
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 11]}))
    with closing(Text.load(folder(tmp_path / "base", {}, template_file=True))) as text:
        words = await text.templates.own("sha256:1", own)
        template = await text.templates.find("sha256:1", own)
        assert await template.render(Conversation(({"role": "user", "content": "hi"},))) == "<s>hi<|user|>"
        assert words.eos_token == "<|user|>"
        assert text.special_id("<|user|>") == text.pieces.tokenizer.token_to_id("<|user|>")
        assert words.eos_token_ids == (9, 11)
        assert (await text.templates.own(None, None)).eos_token_ids == ()
        (own / "generation_config.json").write_text('{"eos_token_id": "x"}')
        with pytest.raises(AdapterError, match="generation_config"):
            text.judge(own, 1000)


async def test_of_several_templates_the_default_one_counts(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    text = Text.load(folder(tmp_path, {"chat_template": templates}))
    assert (await text.templates.find(None, None)).source == "plain"


async def test_without_a_template_chat_is_refused_with_the_way_out(tmp_path: Path) -> None:
    text = Text.load(folder(tmp_path, {}))
    with pytest.raises(InvalidValue, match="/v1/completions"):
        await text.templates.find(None, None)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TextFileError, match=r"tokenizer\.json"):
        Text.load(tmp_path)


def test_broken_tokenizer_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TextFileError, match=r"tokenizer\.json"):
        Text.load(tmp_path)
    byte_fallback().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(TextFileError, match="tokenizer_config"):
        Text.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "special_tokens_map.json").write_text("[" * 100_000)
    with pytest.raises(TextFileError, match="special_tokens_map"):
        Text.load(tmp_path)


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("times", [1, 3, 4 * THREAD_CHARS])
async def test_the_last_tokens_of_a_text_are_those_that_transformers_keeps(
    tmp_path: Path, times: int, add_special_tokens: bool
) -> None:
    path = folder(tmp_path, {})
    reference = PreTrainedTokenizerFast.from_pretrained(path, truncation_side="left")
    sample = "seven eight, nine " * times
    with closing(Text.load(path)) as text:
        for keep_last in (1, 2, 7, 600):
            ids = await text.encode(
                sample, add_special_tokens=add_special_tokens, max_tokens=601, field="prompt", keep_last=keep_last
            )
            whole = reference(sample, add_special_tokens=add_special_tokens, truncation=True, max_length=keep_last)
            assert list(ids) == whole["input_ids"]
