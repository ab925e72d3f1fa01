"""Fields that clients of other open servers send are honoured, in whole answers and in streams."""

from pathlib import Path
from typing import Any

import pytest
import torch
from openai import BadRequestError, OpenAI
from support.declared_pod import DeclaredPod
from support.pod import ServedPod
from support.tiny_llama import MAX_MODEL_LEN
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

PROMPT = "The quick brown fox"
USER: Any = [{"role": "user", "content": "one two three"}]
SHORT: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base_folder / "tokenizer.json"))


def completed(client: OpenAI, prompt: Any = PROMPT, **fields: Any) -> Any:
    """The answer to a completion; fields that the client does not know go beside those that it does."""
    known = {"n", "best_of", "echo", "logprobs", "stop", "suffix", "stream", "stream_options", "logit_bias"}
    own = {name: value for name, value in fields.items() if name in known | set(SHORT)}
    extra = {name: value for name, value in fields.items() if name not in own}
    return client.completions.create(prompt=prompt, extra_body=extra, **{**SHORT, **own})


def chatted(client: OpenAI, messages: Any = USER, **fields: Any) -> Any:
    known = {"n", "logprobs", "top_logprobs", "stop", "stream", "stream_options", "reasoning_effort"}
    own = {name: value for name, value in fields.items() if name in known | set(SHORT)}
    extra = {name: value for name, value in fields.items() if name not in own}
    return client.chat.completions.create(messages=messages, extra_body=extra, **{**SHORT, **own})


def test_drafts_are_as_a_request_wants_them_and_answers_as_without(client: OpenAI, declared: DeclaredPod) -> None:
    asked: dict[str, Any] = {"max_tokens": 32, "logit_bias": {"9": 100}, "ignore_eos": True, "return_token_ids": True}
    plain = completed(client, num_speculative_tokens=0, **asked).choices[0].token_ids
    with pytest.raises(BadRequestError) as refused:
        completed(client, num_speculative_tokens=1, **asked)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "num_speculative_tokens")
    series = 'lorafleet_draft_tokens_total{adapter="",base="tiny"}'
    with declared.pod.openai() as drafting:
        drafted = []
        for fields in ({"num_speculative_tokens": 0}, {"num_speculative_tokens": 4}, {}):
            before = declared.pod.metric(series)
            assert completed(drafting, **asked, **fields).choices[0].token_ids == plain
            drafted.append(declared.pod.metric(series) > before)
        assert drafted == [False, True, True]
        with pytest.raises(BadRequestError) as too_many:
            completed(drafting, num_speculative_tokens=5, **asked)
        assert (too_many.value.code, too_many.value.param) == ("invalid_value", "num_speculative_tokens")


def test_right_draft_tokens_are_counted_by_adapter(declared: DeclaredPod) -> None:
    declared.adapter(declared.volume, "drafted")
    declared.admin.put("drafted", "volume", "drafted")
    drafts, right = (
        f'lorafleet_draft_tokens_{kind}{{adapter="{{adapter}}",base="tiny"}}' for kind in ("total", "accepted_total")
    )

    def counted() -> list[float]:
        of_base = [declared.pod.metric(series.replace("{adapter}", "")) for series in (drafts, right)]
        return [declared.pod.metric_of_adapter(series, "drafted") for series in (drafts, right)] + of_base

    before = counted()
    with declared.pod.openai() as client:
        completed(client, model="drafted", max_tokens=32, logit_bias={"9": 100}, ignore_eos=True)
    drafted, accepted, *of_base = (now - then for now, then in zip(counted(), before, strict=True))
    assert 16 <= accepted <= drafted, "each token is the one before it"
    assert of_base == [0, 0]


@pytest.mark.parametrize("shown", [False, True], ids=["cut", "shown"])
def test_a_stop_string_that_ends_within_a_draft_ends_the_answer_there(declared: DeclaredPod, shown: bool) -> None:
    asked: dict[str, Any] = {"max_tokens": 24, "logit_bias": {"9": 100}, "ignore_eos": True, "return_token_ids": True}
    with declared.pod.openai() as client:
        one = completed(client, num_speculative_tokens=0, **asked | {"max_tokens": 1}).choices[0].text
        for number in range(2, 13):  # drafts have four tokens: some of these end in the middle of one
            fields = asked | {"stop": [one * number], "include_stop_str_in_output": shown}
            plain, drafted = (completed(client, num_speculative_tokens=most, **fields) for most in (0, 4))
            assert plain.choices[0].text == (one * number if shown else "")
            assert drafted.choices == plain.choices
            assert drafted.usage.completion_tokens == plain.usage.completion_tokens == number
            events = list(completed(client, stream=True, stream_options={"include_usage": True}, **fields))
            assert "".join(event.choices[0].text for event in events if event.choices) == plain.choices[0].text
            assert events[-1].usage.completion_tokens == number


def test_token_ids_come_with_answers_and_streams(client: OpenAI, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(PROMPT).ids
    whole = completed(client, return_token_ids=True).choices[0]
    assert whole.prompt_token_ids == prompt
    assert tokenizer.decode(whole.token_ids) == whole.text
    events = [event.choices[0] for event in completed(client, return_token_ids=True, stream=True)]
    assert events[0].prompt_token_ids == prompt
    assert not any(hasattr(event, "prompt_token_ids") for event in events[1:])
    assert [token for event in events for token in event.token_ids] == whole.token_ids
    said = chatted(client, return_token_ids=True)
    assert tokenizer.decode(said.choices[0].token_ids) == said.choices[0].message.content
    chunks = list(chatted(client, return_token_ids=True, stream=True))
    assert chunks[0].prompt_token_ids == said.prompt_token_ids
    told = [token for chunk in chunks for token in getattr(chunk.choices[0], "token_ids", [])]
    assert told == said.choices[0].token_ids
    assert not hasattr(completed(client).choices[0], "token_ids")


def test_an_end_token_is_among_the_token_ids(client: OpenAI, tokenizer: Tokenizer) -> None:
    end = tokenizer.token_to_id("</s>")
    answer = completed(client, logit_bias={str(end): 100}, return_token_ids=True)
    assert (answer.choices[0].token_ids, answer.choices[0].text) == ([end], "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 0
    shown = completed(client, logit_bias={str(end): 100}, include_stop_str_in_output=True, skip_special_tokens=False)
    assert shown.choices[0].text == "</s>"


def test_log_probabilities_name_tokens_by_their_ids_where_that_is_asked_for(client: OpenAI) -> None:
    asked: dict[str, Any] = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    choice = completed(client, logprobs=2, **asked).choices[0]
    names = [f"token_id:{token}" for token in choice.token_ids]
    assert choice.logprobs.tokens == names
    assert all(name in top for name, top in zip(names, choice.logprobs.top_logprobs, strict=True))
    said = chatted(client, logprobs=True, top_logprobs=1, **asked).choices[0]
    assert [one.token for one in said.logprobs.content] == [f"token_id:{token}" for token in said.token_ids]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_part_of_the_answer_where_that_is_asked_for(client: OpenAI, stream: bool) -> None:
    whole = completed(client).choices[0].text
    stop = whole[3:5]
    end = whole.index(stop)
    for shown in (False, True):
        answer = completed(client, stop=stop, include_stop_str_in_output=shown, stream=stream)
        text = "".join(one.choices[0].text for one in answer) if stream else answer.choices[0].text
        assert text == whole[: end + len(stop) if shown else end]


def test_special_tokens_are_shown_where_they_are_asked_for(client: OpenAI, tokenizer: Tokenizer) -> None:
    user = tokenizer.token_to_id("<|user|>")
    only: dict[str, Any] = {"allowed_token_ids": [user], "max_tokens": 3}
    assert completed(client, **only).choices[0].text == ""
    for spaces in (True, False):
        shown = completed(client, **only, skip_special_tokens=False, spaces_between_special_tokens=spaces)
        assert shown.choices[0].text == "<|user|>" * 3


def test_only_allowed_tokens_are_chosen_and_bad_words_are_not(client: OpenAI, tokenizer: Tokenizer) -> None:
    allowed = [tokenizer.token_to_id(name) for name in ("a", "b", "c")]
    drawn = completed(client, allowed_token_ids=allowed, temperature=2, max_tokens=32).choices[0].text
    assert set(drawn) <= set("abc")
    free = completed(client, return_token_ids=True).choices[0]
    first = tokenizer.decode(free.token_ids[:1])
    pair = tokenizer.decode(free.token_ids[:2])
    without = completed(client, bad_words=[first], return_token_ids=True).choices[0]
    assert free.token_ids[0] not in without.token_ids
    other = completed(client, bad_words=[pair], return_token_ids=True).choices[0].token_ids
    if tokenizer.encode(pair.lstrip(), add_special_tokens=False).ids == free.token_ids[:2]:
        assert other[0] == free.token_ids[0]
        assert other[1] != free.token_ids[1]


def test_prompts_are_cut_to_their_end(client: OpenAI, tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode(PROMPT, add_special_tokens=False).ids
    bos = tokenizer.token_to_id("<s>")
    cut = completed(client, truncate_prompt_tokens=3, return_token_ids=True)
    assert cut.choices[0].prompt_token_ids == [bos, *whole[-2:]]
    assert cut.usage.prompt_tokens == 3
    bare = completed(client, truncate_prompt_tokens=3, return_token_ids=True, add_special_tokens=False)
    assert bare.choices[0].prompt_token_ids == whole[-3:]
    ids = completed(client, [5, 6, 7, 8], truncate_prompt_tokens=2, return_token_ids=True)
    assert ids.choices[0].prompt_token_ids == [7, 8]
    long = "seven eight " * 20000
    fits = chatted(client, [{"role": "user", "content": long}], truncate_prompt_tokens=-1)
    assert fits.usage.prompt_tokens == MAX_MODEL_LEN - SHORT["max_tokens"]


def test_salts_separate_the_prefix_cache(client: OpenAI) -> None:
    prompt = "A prompt of several blocks that nobody else sends, with salt. " * 2
    cached = [
        completed(client, prompt, cache_salt=salt).usage.prompt_tokens_details.cached_tokens
        for salt in ("mine", "yours", "mine")
    ]
    assert cached[:2] == [0, 0]
    assert cached[2] > 0
    unsalted = client.completions.create(prompt=prompt, **SHORT).usage
    assert unsalted is not None
    assert unsalted.prompt_tokens_details is not None
    assert unsalted.prompt_tokens_details.cached_tokens == 0


def test_the_best_of_several_are_shown_by_their_log_probability(client: OpenAI) -> None:
    drawn: dict[str, Any] = {"temperature": 1.5, "seed": 11, "logprobs": 0, "return_token_ids": True}
    every = completed(client, n=6, **drawn)
    best = completed(client, best_of=6, n=2, **drawn)

    def mean(choice: Any) -> float:
        values = choice.logprobs.token_logprobs
        return float(sum(values) / len(values))

    ranked = sorted(every.choices, key=mean, reverse=True)
    assert [one.text for one in best.choices] == [one.text for one in ranked[:2]]
    assert [one.index for one in best.choices] == [0, 1]
    assert best.usage.completion_tokens == every.usage.completion_tokens
    assert completed(client, best_of=3, temperature=1).choices[0].logprobs is None
    assert chatted(client, best_of=3, temperature=1).choices[0].message.content is not None


@pytest.mark.parametrize("ask", [completed, chatted])
def test_usage_comes_with_each_event_where_that_is_asked_for(client: OpenAI, ask: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = list(ask(client, stream=True, stream_options=options))
    assert all(event.usage for event in events)
    counts = [event.usage.completion_tokens for event in events]
    assert counts == sorted(counts)
    assert (counts[-1], counts[-2]) == (8, 8)
    assert not events[-1].choices
    plain = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert [bool(event.usage) for event in plain].count(True) == 1


def scores(base_folder: Path, ids: list[int]) -> torch.Tensor:
    """What the model itself thinks of each token but the first, over the vocabulary."""
    model = LlamaForCausalLM.from_pretrained(base_folder).eval()
    with torch.inference_mode():
        table = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    assert isinstance(table, torch.Tensor)
    return table


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_log_likelihoods_of_a_text_are_the_models(
    client: OpenAI, base_folder: Path, tokenizer: Tokenizer, max_tokens: int
) -> None:
    """As lm_eval asks for them: context and continuation as ids, echoed with log-probabilities, several at a time."""
    pairs = [("The quick brown", " fox jumps over"), ("one two three", " four five"), ("x", "y")]
    prompts = [[tokenizer.encode(part, add_special_tokens=False).ids for part in pair] for pair in pairs]
    answer = completed(
        client, [context + rest for context, rest in prompts], max_tokens=max_tokens, echo=True, logprobs=1
    )
    for choice, (context, rest) in zip(answer.choices, prompts, strict=True):
        ids, end = context + rest, len(context) + len(rest)
        table = scores(base_folder, ids)
        expected = [float(table[at - 1, ids[at]]) for at in range(1, len(ids))]
        got = choice.logprobs.token_logprobs
        assert got[0] is None
        assert got[1:end] == pytest.approx(expected, abs=1e-4)
        assert len(got) == end + max_tokens
        greedy = all(int(table[at - 1].argmax()) == ids[at] for at in range(len(context), end))
        tops = choice.logprobs.top_logprobs[len(context) : end]
        assert greedy == all(one == max(top.values()) for one, top in zip(got[len(context) : end], tops, strict=True))


def test_a_prompt_is_echoed_as_it_was_written(client: OpenAI, tokenizer: Tokenizer) -> None:
    rest = completed(client).choices[0].text
    whole = completed(client, echo=True, logprobs=1).choices[0]
    assert whole.text == PROMPT + rest
    offsets = whole.logprobs.text_offset
    names = whole.logprobs.tokens
    assert len(offsets) == len(names)
    num_prompt = len(tokenizer.encode(PROMPT).ids)
    of_prompt = list(zip(offsets, names, strict=True))[1:num_prompt]
    assert all(whole.text[at:].startswith(name) for at, name in of_prompt)
    assert offsets[num_prompt] == len(PROMPT)
    assert completed(client, echo=True, max_tokens=0).choices[0].text == PROMPT
    assert completed(client, echo=True, max_tokens=0).usage.completion_tokens == 0


def test_streams_echo_too(client: OpenAI) -> None:
    whole = completed(client, echo=True, logprobs=1, n=2)
    events = list(completed(client, echo=True, logprobs=1, n=2, stream=True))
    for index, choice in enumerate(whole.choices):
        own = [event.choices[0] for event in events if event.choices[0].index == index]
        assert "".join(one.text for one in own) == choice.text
        parts = [one.logprobs for one in own if one.logprobs is not None]
        assert [at for part in parts for at in part.text_offset] == choice.logprobs.text_offset
        assert [name for part in parts for name in part.tokens] == choice.logprobs.tokens


def test_a_message_can_be_continued(client: OpenAI, tokenizer: Tokenizer) -> None:
    half = [*USER, {"role": "assistant", "content": "The answer"}]
    asked = chatted(client, half, continue_final_message=True, return_token_ids=True)
    prompt = tokenizer.decode(asked.prompt_token_ids, skip_special_tokens=False)
    assert prompt.endswith("assistant: The answer")
    closed = chatted(client, half, add_generation_prompt=False, return_token_ids=True)
    assert tokenizer.decode(closed.prompt_token_ids, skip_special_tokens=False).endswith("The answer\n")
    with_bos = chatted(client, add_special_tokens=True, return_token_ids=True).prompt_token_ids
    assert with_bos == [tokenizer.token_to_id("<s>"), *chatted(client, return_token_ids=True).prompt_token_ids]


def test_variables_that_the_template_does_not_read_change_nothing(client: OpenAI) -> None:
    plain = chatted(client).choices[0].message.content
    said = chatted(client, chat_template_kwargs={"enable_thinking": False}, reasoning_effort="high", priority=3)
    assert said.choices[0].message.content == plain


def test_what_cannot_be_honoured_here_is_refused_by_name(client: OpenAI) -> None:
    for fields in ({"documents": [{"text": "x"}]}, {"chat_template": "{{ messages[0].content }}"}):
        with pytest.raises(BadRequestError) as caught:
            chatted(client, **fields)
        assert caught.value.param == next(iter(fields))
    for fields in ({"allowed_token_ids": [10**6]}, {"truncate_prompt_tokens": -3}, {"best_of": 200}, {"suffix": "x"}):
        with pytest.raises(BadRequestError) as caught:
            completed(client, **fields)
        assert caught.value.param == next(iter(fields))


def test_a_lenient_pod_takes_templates_of_requests_and_ignores_unknown_fields(
    declared: DeclaredPod, tokenizer: Tokenizer
) -> None:
    pod: ServedPod = declared.pod
    with pod.openai() as client:
        template = "{% for d in documents %}{{ d.text }}{% endfor %}{{ messages[0].content }}{{ tail }}"
        said = chatted(
            client,
            chat_template=template,
            documents=[{"text": "body "}],
            chat_template_kwargs={"tail": "!"},
            return_token_ids=True,
            chat_id="of Open WebUI",
        )
        assert tokenizer.decode(said.prompt_token_ids) == "body one two three!"
        endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        with pytest.raises(BadRequestError, match="2 seconds"):
            chatted(client, chat_template=endless + "{{ messages[0].content }}")
    assert pod.metric('lorafleet_unknown_fields_total{base="tiny",field="chat_id"}') >= 1
    assert pod.logs.count("unknown field 'chat_id'") == 1
