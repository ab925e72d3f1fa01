"""An adapter's own tokenizer does for its requests what transformers does with it, and nothing to those of others."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.tokenizers_made import byte_fallback, byte_level, word_piece
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError, ContextLengthExceeded, InvalidValue
from lorafleet_inference.text.infill import infill_of
from lorafleet_inference.text.own_text import Codec
from lorafleet_inference.text.tokenizer import Text

SAMPLES = ["one two", "", "<tool> seven <custom>", "<|user|>hé 😀 一二 ", "</s><tool>"]
ROWS = 1000


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


@pytest.fixture
def text(base: Path) -> Iterator[Text]:
    with closing(Text.load(base)) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "adapter"
    made.mkdir()
    return made


def with_tools(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.add_special_tokens(["<custom>"])
    return tokenizer


def write_file(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<custom>"}))


def write_config(folder: Path, tokenizer: Tokenizer) -> None:
    """Only what is added to the base's, as newer releases write it."""
    token_ids = {name: tokenizer.token_to_id(name) for name in ("<tool>", "<custom>")}
    added = {token_ids[name]: {"content": name, "special": name == "<custom>"} for name in token_ids}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "eos_token": "<custom>"}))


def write_added(folder: Path, tokenizer: Tokenizer) -> None:
    """Only what is added to the base's, as older releases write it."""
    token_ids = {name: tokenizer.token_to_id(name) for name in ("<tool>", "<custom>")}
    (folder / "added_tokens.json").write_text(json.dumps(token_ids))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<custom>"}))


def whole_text(codec: Codec, token_ids: tuple[int, ...]) -> str:
    detokenizer = codec.detokenizer(strip_leading=True)
    return "".join([*(detokenizer.push([token_id]) for token_id in token_ids), detokenizer.finish()])


async def check(codec: Codec, reference: PreTrainedTokenizerFast) -> None:
    for sample in SAMPLES:
        for special in (True, False):
            expected = reference(sample, add_special_tokens=special)["input_ids"]
            found = await codec.encode(sample, add_special_tokens=special, max_tokens=200, field="prompt")
            assert list(found) == expected
        assert whole_text(codec, found) == reference.decode(found, skip_special_tokens=True)
    tool = reference.convert_tokens_to_ids("<tool>")
    assert (codec.pieces.shown(tool), codec.pieces.is_special(tool)) == (b"<tool>", False)


@pytest.mark.parametrize("write", [write_file, write_config, write_added])
async def test_an_adapters_tokenizer_is_its_own_both_ways(
    text: Text, folder: Path, tmp_path: Path, write: Callable[[Path, Tokenizer], None]
) -> None:
    own = with_tools(byte_level())
    write(folder, own)
    text.judge(folder, ROWS)
    codec = await text.own.find("sha256:1", folder, ROWS)
    assert codec is not None
    whole = tmp_path / "whole"
    whole.mkdir()
    own.save(str(whole / "tokenizer.json"))
    await check(codec, PreTrainedTokenizerFast.from_pretrained(whole))
    assert codec.special_id("<custom>") == own.token_to_id("<custom>")
    assert list(text.encode_now("<tool>", add_special_tokens=False)) != [own.token_to_id("<tool>")]


async def test_an_adapter_may_add_the_tokens_of_a_text_with_a_hole(text: Text, folder: Path) -> None:
    own = byte_level()
    own.add_tokens([AddedToken(f"<|fim_{part}|>", special=False) for part in ("prefix", "suffix", "middle")])
    own.save(str(folder / "tokenizer.json"))
    codec = await text.own.find("sha256:1", folder, ROWS)
    assert codec is not None
    assert infill_of(text.special_id) is None
    assert infill_of(codec.special_id) == infill_of(own.token_to_id)


async def test_a_tokenizer_of_another_kind_than_the_bases(text: Text, folder: Path) -> None:
    write_file(folder, with_tools(byte_fallback()))
    text.judge(folder, ROWS)
    codec = await text.own.find("sha256:1", folder, ROWS)
    assert codec is not None
    await check(codec, PreTrainedTokenizerFast.from_pretrained(folder))


async def test_the_bases_tokenizer_written_otherwise_is_the_bases(text: Text, base: Path, folder: Path) -> None:
    same = Tokenizer.from_file(str(base / "tokenizer.json"))
    same.enable_truncation(7)
    same.enable_padding(length=7)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(same.to_str()), indent=4))
    (folder / "tokenizer_config.json").write_text((base / "tokenizer_config.json").read_text())
    text.judge(folder, 0)
    assert await text.own.find("sha256:1", folder, 0) is None
    (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    assert await text.own.find("sha256:2", folder, 0) is None


@pytest.mark.parametrize("write", [write_file, write_config, write_added])
def test_tokens_beyond_the_embedding_are_refused_with_the_numbers(
    text: Text, folder: Path, write: Callable[[Path, Tokenizer], None]
) -> None:
    own = with_tools(byte_level())
    write(folder, own)
    size = own.get_vocab_size()
    text.judge(folder, size)
    with pytest.raises(AdapterError, match=rf"ids up to {size - 1} \('<custom>'\).*has {size - 1} rows") as caught:
        text.judge(folder, size - 1)
    assert caught.value.reason is Reason.BASE_MODEL_MISMATCH


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 123456\n"


@pytest.mark.parametrize(
    ("files", "why", "reason"),
    [
        ({"tokenizer.json": "{"}, "cannot be read", Reason.ARTIFACT_INVALID),
        ({"tokenizer.json": POINTER}, "tokenizer.json is a Git LFS pointer", Reason.ARTIFACT_INVALID),
        ({"tokenizer_config.json": POINTER}, ": tokenizer_config.json is a Git LFS", Reason.ARTIFACT_INVALID),
        (
            {"generation_config.json": "<!DOCTYPE html>"},
            "generation_config.json is a web page",
            Reason.ARTIFACT_INVALID,
        ),
        (
            {"added_tokens.json": "\ufeff{}"},
            "added_tokens.json is text that begins with a byte",
            Reason.ARTIFACT_INVALID,
        ),
        ({"added_tokens.json": '{"<tool>": "x"}'}, "added_tokens.json is malformed", Reason.ARTIFACT_INVALID),
        ({"added_tokens.json": '{"<tool>": 7}'}, "'<tool>' has the id 7, and 421", Reason.ARTIFACT_INVALID),
        ({"tokenizer.json": word_piece().to_str()}, "neither byte-level", Reason.UNSUPPORTED_ADAPTER),
    ],
)
def test_what_cannot_be_used_is_refused(
    text: Text, folder: Path, files: dict[str, str], why: str, reason: Reason
) -> None:
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(AdapterError, match=why) as caught:
        text.judge(folder, ROWS)
    assert caught.value.reason is reason


async def test_long_texts_are_refused_early_and_never_cut(text: Text, folder: Path) -> None:
    write_file(folder, with_tools(byte_level()))
    codec = await text.own.find("sha256:1", folder, ROWS)
    assert codec is not None
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    long = "<tool> seven eight " * 3000
    expected = reference(long)["input_ids"]
    found = await codec.encode(long, add_special_tokens=True, max_tokens=len(expected), field="prompt")
    assert list(found) == expected
    with pytest.raises(ContextLengthExceeded, match="context length is 100 tokens"):
        await codec.encode(long, add_special_tokens=True, max_tokens=100, field="prompt")


async def test_a_pattern_that_never_ends_fails_alone(text: Text, folder: Path, tmp_path: Path) -> None:
    endless, good = with_tools(byte_level()), tmp_path / "good"
    endless.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"(?:a|b|ab)+c"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    write_file(folder, endless)
    good.mkdir()
    write_file(good, with_tools(byte_level()))
    text.judge(folder, ROWS)
    bad_codec = await text.own.find("sha256:1", folder, ROWS)
    codec = await text.own.find("sha256:2", good, ROWS)
    assert bad_codec is not None
    assert codec is not None
    hostile = asyncio.create_task(
        bad_codec.encode(("ab" * 18 + "!") * 1000, add_special_tokens=False, max_tokens=99999, field="prompt")
    )
    num_answered = 0
    while not hostile.done():
        assert await codec.encode("one <tool>", add_special_tokens=False, max_tokens=200, field="prompt")
        await asyncio.sleep(0.01)
        num_answered += 1
    with pytest.raises(InvalidValue, match="more than 5 seconds"):
        await hostile
    assert num_answered > 5, "others were held up until it had ended"
    with pytest.raises(InvalidValue, match="more than 5 seconds"):
        await bad_codec.encode("x", add_special_tokens=False, max_tokens=200, field="prompt")


def test_processes_know_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch, text: Text, folder: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for tokenizers")
    write_file(folder, with_tools(byte_level()))
    text.judge(folder, ROWS)
    (pid,) = text.own.workers.pids
    assert b"AWS_SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()
