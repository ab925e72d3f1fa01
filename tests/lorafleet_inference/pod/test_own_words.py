"""What an adapter's folder says of texts holds for its requests alone."""

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIStatusError, BadRequestError
from peft import LoraConfig, get_peft_model
from support.pod import ServedPod, command, serve
from tokenizers import AddedToken, Tokenizer
from transformers import LlamaForCausalLM

USER: Any = [{"role": "user", "content": "one two"}]


@dataclass(frozen=True)
class Added:
    """Folders of two adapters with a token more than the base, and its id; the tokenizer of the other has a second one."""

    tools: Path
    missing: Path
    token_id: int


@pytest.fixture(scope="module")
def added(base_folder: Path) -> Added:
    tokenizer = Tokenizer.from_file(str(base_folder / "tokenizer.json"))
    before = tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    folder = base_folder.parent / "tools"
    model = LlamaForCausalLM.from_pretrained(base_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are being renamed, and of embeddings that are saved
        model.resize_token_embeddings(before + 1)
        config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
        get_peft_model(model, config).save_pretrained(folder)
    missing = base_folder.parent / "missing"
    shutil.copytree(folder, missing)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<more>", special=False, normalized=False)])
    tokenizer.save(str(missing / "tokenizer.json"))
    return Added(folder, missing, before)


@pytest.fixture(scope="module")
def own_words(base_folder: Path, adapter_folders: dict[str, Path], added: Added) -> Iterator[ServedPod]:
    """A pod with adapters that say of texts what the base does not: of one, a token of the base is another word; of one,
    each token ends an answer.
    """
    renamed, mute = base_folder.parent / "renamed", base_folder.parent / "mute"
    for folder in (renamed, mute):
        shutil.copytree(adapter_folders["red"], folder)
    text = (base_folder / "tokenizer.json").read_text()
    (renamed / "tokenizer.json").write_text(json.dumps(_with_word(json.loads(text))))
    (renamed / "chat_template.jinja").write_text("{{ tools }}{{ messages[-1]['content'] }}{# <tool_call> #}")
    vocab_size = json.loads((base_folder / "config.json").read_text())["vocab_size"]
    (mute / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(vocab_size))}))
    adapters = {"red": adapter_folders["red"], "renamed": renamed, "mute": mute}
    adapters |= {"tools": added.tools, "missing": added.missing}
    with serve(base_folder, "--served-name=tiny", adapters=adapters) as pod:
        yield pod


def test_the_end_tokens_of_an_adapter_end_its_answers_alone(own_words: ServedPod) -> None:
    with own_words.openai() as client:
        for model, finish, most in (("mute", "stop", 0), ("red", "length", 4)):
            asked: Any = {"model": model, "max_tokens": 4, "temperature": 0, "extra_body": {"min_tokens": 0}}
            if model == "red":
                asked["logit_bias"] = {str(2): -100, str(1): -100}
            chat = client.chat.completions.create(messages=USER, **asked)
            text = client.completions.create(prompt="one two", **asked)
            for answer in (chat, text):
                assert answer.usage is not None
                assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == (finish, most)
        ignoring = client.completions.create(
            model="mute", prompt="one two", max_tokens=4, temperature=0, extra_body={"ignore_eos": True}
        )
        assert ignoring.choices[0].finish_reason == "length"


def post(pod: ServedPod, path: str, body: Any) -> httpx.Response:
    return httpx.post(f"{pod.url}{path}", json=body, timeout=60, trust_env=False)


def _with_word(document: Any) -> Any:
    (token,) = (one for one in document["added_tokens"] if one["content"] == "héé")
    token["content"] = "tool"
    return document


def test_an_adapters_own_tokenizer_is_used_for_its_requests_alone(base_folder: Path, own_words: ServedPod) -> None:
    token_id = Tokenizer.from_file(str(base_folder / "tokenizer.json")).token_to_id("héé")
    pod = own_words
    with pod.openai() as client:
        asked: Any = {"max_tokens": 3, "temperature": 0, "logit_bias": {str(token_id): 100}, "logprobs": 1}
        for model, word, other in (("renamed", "tool", "héé"), ("red", "héé", "tool")):
            one = client.completions.create(model=model, prompt=word, **asked)
            pieces = client.completions.create(model=model, prompt=other, **asked)
            assert one.usage is not None
            assert pieces.usage is not None
            assert one.usage.prompt_tokens == 2  # after <s>
            assert pieces.usage.prompt_tokens > 2
            assert ("tool" in one.choices[0].text) == (model == "renamed")
        asked["model"] = "renamed"
        one = client.completions.create(prompt="tool", extra_body={"prompt_logprobs": 0}, **asked)
        assert one.choices[0].text == 3 * "tool"
        assert one.choices[0].logprobs is not None
        assert one.choices[0].logprobs.tokens == 3 * ["tool"]
        (shown,) = one.choices[0].model_extra["prompt_logprobs"][1].values()  # type: ignore[index]
        assert shown["decoded_token"] == "tool"
        stream = client.completions.create(prompt=[5], stream=True, **asked)
        assert "".join(event.choices[0].text for event in stream) == 3 * "tool"
        stopped = client.completions.create(prompt="tool", stop="olto", **asked)
        assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("to", "stop")
        told = post(pod, "/tokenize", {"model": "renamed", "prompt": "tool", "return_token_strs": True})
        assert (told.json()["tokens"][1:], told.json()["token_strs"][1:]) == ([token_id], ["tool"])
        written = post(pod, "/detokenize", {"model": "renamed", "tokens": [token_id]})
        assert written.json() == {"prompt": "tool"}


@pytest.mark.parametrize(
    ("field", "form"), [("response_format", {"type": "json_object"}), ("guided_choice", ["tool", "other"])]
)
def test_forms_of_answers_are_refused_where_the_tokens_are_the_adapters_own(
    own_words: ServedPod, field: str, form: Any
) -> None:
    with own_words.openai() as client:
        with pytest.raises(BadRequestError, match="tokenizer of its own") as caught:
            client.completions.create(model="renamed", prompt="x", extra_body={field: form})
        assert caught.value.param == field
        assert client.completions.create(model="red", prompt="x", max_tokens=4, extra_body={field: form}).choices


def test_calls_of_tools_are_found_there_and_not_enforced(own_words: ServedPod) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    strict: Any = [{"type": "function", "function": {**tools[0]["function"], "strict": True}}]
    asked: Any = {"model": "renamed", "messages": USER, "max_tokens": 3}
    with own_words.openai() as client:
        assert client.chat.completions.create(tools=tools, **asked).choices
        for enforced in ({"tools": tools, "tool_choice": "required"}, {"tools": strict}):
            with pytest.raises(BadRequestError, match="tokenizer of its own") as caught:
                client.chat.completions.create(**enforced, **asked)
            assert caught.value.param == "tools"


def test_tokens_that_an_adapter_added_are_read_and_written(
    base_folder: Path, own_words: ServedPod, added: Added
) -> None:
    before = added.token_id
    asked: Any = {"max_tokens": 3, "temperature": 0, "logit_bias": {str(before): 100}, "logprobs": 2}
    with own_words.openai() as client:
        for prompt in ("<tool>", [before]):
            answer = client.completions.create(model="tools", prompt=prompt, **asked)
            assert answer.choices[0].text == 3 * "<tool>"
        for request in ({**asked, "prompt": "x"}, {"prompt": [before]}):
            with pytest.raises(BadRequestError, match=f"token id {before} is not below the vocabulary's {before}"):
                client.completions.create(model="tiny", **request)
        with pytest.raises(
            APIStatusError, match=rf"ids up to {before + 1} \('<more>'\), and the embedding has {before + 1}"
        ):
            client.completions.create(model="missing", prompt="x")
    assert f"the embedding has {before + 1} rows" in validate(added.missing, base_folder, 1)
    told = validate(added.tools, base_folder, 0)
    assert f"vocabulary {before + 1} rows, the base {before}" in told
    assert f"tokenizer its own, {before + 1} tokens" in told


def validate(folder: Path, base_folder: Path, status: int) -> str:
    done = command("validate", str(folder), f"--model={base_folder}")
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_lorax_routes_speak_the_adapters_own_tokens(base_folder: Path, own_words: ServedPod) -> None:
    """Prompt and answer are told in its words; a form of the answer is refused with the field that asks for it."""
    base = Tokenizer.from_file(str(base_folder / "tokenizer.json"))
    token_id = base.token_to_id("héé")
    for model, word, written in (("renamed", "tool", "tool"), ("red", "héé", base.decode([token_id]))):
        parameters = {"adapter_id": model, "max_new_tokens": 4, "decoder_input_details": True, "ignore_eos_token": True}
        told = post(own_words, "/generate", {"inputs": word, "parameters": parameters}).json()
        assert (told["details"]["prefill"][-1]["id"], told["details"]["prefill"][-1]["text"]) == (token_id, written)
        shown = [token["text"] for token in told["details"]["tokens"] if not token["special"]]
        assert "".join(shown) == told["generated_text"]
    form = {"adapter_id": "renamed", "response_format": {"type": "json_object"}}
    refused = post(own_words, "/generate", {"inputs": "tool", "parameters": form})
    assert (refused.status_code, refused.json()["param"]) == (422, "parameters.response_format")
