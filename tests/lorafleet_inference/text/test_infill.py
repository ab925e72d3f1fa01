"""A text with a hole is written as the models of each family have learned it, and refused where none was."""

from contextlib import closing
from pathlib import Path

import pytest
from support.tokenizers_made import byte_fallback, byte_level
from tokenizers import Tokenizer

from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.engine.vocabulary import vocabulary_of
from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.server.completions import Completions
from lorafleet_inference.server.fields import REFUSING
from lorafleet_inference.server.requests import CompletionRequest
from lorafleet_inference.server.surface import Leased, Prompt
from lorafleet_inference.text.infill import ENDS, FAMILIES, Family, infill_of
from lorafleet_inference.text.tokenizer import Text

BEFORE, AFTER = "one two", " four five"


async def prompt_of(tokenizer: Tokenizer, folder: Path, **fields: object) -> Prompt:
    """What the engine would get."""
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    facts = ModelFacts(
        architecture="Any",
        model_type="any",
        num_layers=1,
        vocab_size=size,
        max_model_len=64,
        dtype="float32",
        device="cpu",
        eos_token_ids=(),
        modules=(),
    )
    request = CompletionRequest.model_validate({"model": "m", "prompt": BEFORE, "suffix": AFTER, **fields})
    with closing(Text.load(folder)) as text:
        leased = Leased(facts, vocabulary_of(facts), text, text.templates, None, ())  # type: ignore[arg-type]  no adapter is asked
        (prompt,) = await Completions(REFUSING).prompts(request, leased)
    return prompt


def with_tokens(*names: str) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(list(names))
    return tokenizer


async def test_the_parts_are_arranged_as_in_training(tmp_path: Path) -> None:
    tokenizer = with_tokens("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")
    prompt = await prompt_of(tokenizer, tmp_path)
    spelled = tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)
    assert spelled == f"<s><|fim_prefix|>{BEFORE}<|fim_suffix|>{AFTER}<|fim_middle|>"
    assert tokenizer.token_to_id("<|fim_pad|>") in prompt.eos_token_ids
    assert prompt.token_ids[-1] in prompt.eos_token_ids
    bare = await prompt_of(tokenizer, tmp_path, add_special_tokens=False, truncate_prompt_tokens=1)
    begin = tokenizer.encode(BEFORE, add_special_tokens=False).ids[-1]
    assert bare.token_ids[:2] == (tokenizer.token_to_id("<|fim_prefix|>"), begin)


async def test_the_text_before_the_hole_comes_last_where_it_did_in_training(tmp_path: Path) -> None:
    tokenizer = with_tokens("[PREFIX]", "[SUFFIX]")
    prompt = await prompt_of(tokenizer, tmp_path)
    spelled = tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)
    assert spelled == f"<s>[SUFFIX]{AFTER}[PREFIX]{BEFORE}"


async def test_the_suffix_gets_no_mark_of_a_beginning(tmp_path: Path) -> None:
    """Tokenizers as Llama's put a space before what they take for the beginning of a text."""
    tokenizer = byte_fallback()
    tokenizer.add_special_tokens(["▁<PRE>", "▁<SUF>", "▁<MID>"])
    prompt = await prompt_of(tokenizer, tmp_path, suffix="four")
    at = prompt.token_ids.index(tokenizer.token_to_id("▁<SUF>"))
    of_suffix = [tokenizer.id_to_token(one) for one in prompt.token_ids[at + 1 : -1]]
    assert "".join(of_suffix) == "four"


@pytest.mark.parametrize("family", FAMILIES, ids=[family.prefix for family in FAMILIES])
def test_every_family_is_found_by_all_of_its_tokens(family: Family) -> None:
    names = [name for name in (family.prefix, family.suffix, family.middle) if name is not None]
    known = {name: 7 + at for at, name in enumerate([*names, ENDS[0]])}
    infill = infill_of(known.get)
    assert infill is not None
    assert set(infill.ends) == set(known.values())
    assert infill_of(dict.fromkeys(names[1:], 1).get) is None


async def test_a_vocabulary_without_such_tokens_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="fill-in-the-middle") as caught:
        await prompt_of(byte_level(), tmp_path)
    assert caught.value.param == "suffix"
