"""Chat templates are programs of whoever wrote them: what they cannot do is the request's error, and nobody else's."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError, InvalidValue
from lorafleet_inference.text.chat import ChatTemplate, judge_template
from lorafleet_inference.text.conversation import Conversation
from lorafleet_inference.text.rendering import TemplateFailure
from lorafleet_inference.text.template_workers import TemplateWorkers

USER = Conversation(({"role": "user", "content": "hi"},))
PARTS_ONLY = (
    "{% for m in messages %}<{{ m['role'] }}>{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
DOUBLING = "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
RECURSIVE = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
UNKNOWN_CODEC = "{{ messages[0].content.encode().decode('nope') }}"


@pytest.fixture(scope="module")
def workers() -> Iterator[TemplateWorkers]:
    with closing(TemplateWorkers((1,))) as made:
        yield made


@pytest.mark.parametrize("source", ["{{ raise_exception('roles must alternate') }}", "{{ 1 / 0 }}", "{% if %}"])
async def test_a_template_that_fails_fails_the_request(source: str) -> None:
    with pytest.raises(InvalidValue, match="the chat template") as caught:
        await ChatTemplate(source, {}).render(USER)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", [RECURSIVE, UNKNOWN_CODEC])
async def test_whatever_the_template_of_a_base_raises_is_the_requests_error(source: str) -> None:
    with pytest.raises(InvalidValue, match="the chat template"):
        await ChatTemplate(source, {}).render(USER)


@pytest.mark.parametrize(
    ("source", "why"),
    [(ENDLESS, "2 seconds"), (DOUBLING, "memory"), (RECURSIVE, "recurses"), (UNKNOWN_CODEC, "nope")],
)
async def test_an_adapters_template_fails_alone(workers: TemplateWorkers, source: str, why: str) -> None:
    with pytest.raises(InvalidValue, match=why):
        await ChatTemplate(source, {}, workers).render(USER)
    good = ChatTemplate("{{ bos_token }}{{ messages[-1]['content'] }}", {"bos_token": "<s>"}, workers)
    assert await good.render(USER) == "<s>hi"


@pytest.mark.parametrize("content", ["one", [{"type": "text", "text": "one"}]])
async def test_templates_that_want_parts_get_parts(content: Any) -> None:
    messages = ({"role": "system", "content": "be short"}, {"role": "user", "content": content})
    assert await ChatTemplate(PARTS_ONLY, {}).render(Conversation(messages)) == "<system>be short<user>one"


async def test_templates_that_take_texts_get_texts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    two = Conversation(({"role": "user", "content": parts},))
    assert await ChatTemplate(EITHER, {}).render(two) == "one\ntwo"
    assert await ChatTemplate("{{ messages[0]['content'] }}", {}).render(two) == "one\ntwo"


async def test_a_template_that_leaves_out_what_the_user_says_is_refused() -> None:
    with pytest.raises(InvalidValue, match="leaves out"):
        await ChatTemplate("{% for m in messages %}<{{ m['role'] }}>{% endfor %}", {}).render(USER)


@pytest.mark.parametrize("source", ["{% if %}", RECURSIVE])
def test_a_template_is_tried_when_the_adapter_is_judged(tmp_path: Path, workers: TemplateWorkers, source: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": source}))
    with pytest.raises(AdapterError, match="the chat template") as caught:
        judge_template(tmp_path, {}, workers)
    assert caught.value.reason is Reason.ARTIFACT_INVALID


def test_a_template_that_takes_other_messages_than_the_one_it_is_tried_with_is_accepted(
    tmp_path: Path, workers: TemplateWorkers
) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('a system message comes first') }}")
    judge_template(tmp_path, {}, workers)


def test_workers_know_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for templates")
    with closing(TemplateWorkers((1,))) as fresh:
        assert fresh.render_now("{{ messages[0].content }}", USER, {}) == "hi"
        (pid,) = fresh.pids
        assert b"AWS_SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()


QWEN_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
HALF = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "The answer is "})
all_ways = pytest.mark.parametrize("own_process", [False, True])


def asked(messages: Any = USER.messages, **how: Any) -> Conversation:
    return Conversation(tuple(messages), **how)


@all_ways
async def test_what_a_request_asks_of_the_template_reaches_it(workers: TemplateWorkers, own_process: bool) -> None:
    template = ChatTemplate(QWEN_LIKE, {}, workers if own_process else None)
    user = "<|im_start|>user\nhi<|im_end|>\n"
    assert await template.render(asked()) == f"{user}<|im_start|>assistant\n"
    assert await template.render(asked(add_generation_prompt=False)) == user
    off = {"enable_thinking": False, "nobody_reads": [1, {"a": None}]}
    assert await template.render(asked(variables=off)) == f"{user}<|im_start|>assistant\n<think></think>"
    half = asked(HALF, add_generation_prompt=False, continue_final_message=True)
    assert await template.render(half) == f"{user}<|im_start|>assistant\nThe answer is "


@all_ways
async def test_documents_reach_the_template_or_are_refused(workers: TemplateWorkers, own_process: bool) -> None:
    documents = ({"title": "T", "text": "body"},)
    chosen = workers if own_process else None
    reads = "{% for d in documents or [] %}[{{ d.title }}: {{ d.text }}]{% endfor %}{{ messages[0].content }}"
    assert await ChatTemplate(reads, {}, chosen).render(asked(documents=documents)) == "[T: body]hi"
    with pytest.raises(InvalidValue, match="no place for documents") as caught:
        await ChatTemplate("{{ messages[0].content }}", {}, chosen).render(asked(documents=documents))
    assert caught.value.param == "documents"


async def test_a_number_that_no_template_can_be_told_is_the_requests_error(workers: TemplateWorkers) -> None:
    with pytest.raises(InvalidValue, match="too large"):
        await ChatTemplate(EITHER, {}, workers).render(asked(variables={"n": 1 << 70}))


async def test_who_always_comes_to_an_end_does_not_wait_for_who_does_not() -> None:
    with closing(TemplateWorkers()) as made:
        good = ChatTemplate("{{ messages[-1]['content'] }}", {}, made)
        assert await good.render(USER) == "hi"
        endless = [asyncio.create_task(made.render(f"{ENDLESS}{number}", USER, {})) for number in range(2)]
        assert await good.render(USER) == "hi"
        assert not any(one.done() for one in endless)
        for one in endless:
            with pytest.raises(TemplateFailure, match=r"2 seconds|no turn"):
                await one


class Message(Mapping[str, Any]):
    """Knows the threads that have written it out."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields, self.threads = fields, set[int]()

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]

    def __iter__(self) -> Iterator[str]:
        self.threads.add(threading.get_ident())
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)


CALLS = [{"id": "c1", "type": "function", "function": {"name": "tool", "arguments": {}}}]


@pytest.mark.parametrize(
    ("fields", "number", "is_long"),
    [
        ({"content": "hi"}, 9, False),
        ({"content": ""}, 200, True),
        ({"content": "x" * 1000}, 9, True),
        ({"content": "", "reasoning_content": "x" * 1000}, 9, True),
        ({"content": "", "name": "x" * 1000}, 9, True),
        ({"content": "", "tool_calls": CALLS}, 1, True),
    ],
    ids=["short", "many", "texts", "reasoning", "names", "calls"],
)
async def test_what_a_base_is_long_about_it_renders_beside_the_event_loop(
    fields: dict[str, Any], number: int, is_long: bool
) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}", {})
    messages = [Message({"role": "assistant", **fields}) for _ in range(number)]
    await template.render(asked(messages))
    (thread,) = set.union(*(message.threads for message in messages))
    assert (thread != threading.get_ident()) == is_long


def test_parts_of_messages_count_as_messages_do() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}] * 99}
    assert asked([parts]).num_chars > 99 * asked([{"role": "user", "content": "a"}]).num_chars
