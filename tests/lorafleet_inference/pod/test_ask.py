"""Whoever rolls a revision out asks it before any name leads to it: the same answers as clients get later, and no more."""

from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import pytest
from support.admin import Refused, entry
from support.declared_pod import DeclaredPod

from lorafleet_contract.admin import AdapterState, AskAnswer, Residency
from lorafleet_contract.names import revision_of

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two"}]


def ask(declared: DeclaredPod, name: str, revision: str, **fields: Any) -> AskAnswer:
    body = {"name": name, "revision": revision, "maxTokens": 8, **fields}
    return AskAnswer.model_validate(declared.admin.request("POST", "/admin/v1/ask", body))


def told(declared: DeclaredPod, name: str, *, stable: bool, residency: Residency = Residency.RESIDENT) -> str:
    declared.adapter(declared.volume, name)
    resolved = declared.admin.resolve("volume", name)
    revision = revision_of(resolved.digest)
    declared.admin.write(entry(name, resolved, stable=stable, residency=residency))
    declared.admin.wait_for(name, AdapterState.READY, revision)
    return revision


def test_a_revision_that_no_name_leads_to_answers_as_it_will(declared: DeclaredPod) -> None:
    old = told(declared, "asked", stable=True)
    new = told(declared, "asked", stable=False)
    with declared.pod.openai() as client:
        for messages in (None, CHAT):
            fields: dict[str, Any] = {"prompt": "one two"} if messages is None else {"messages": messages}
            before = {revision: ask(declared, "asked", revision, **fields) for revision in (old, new)}
            assert before[old].text != before[new].text
            for revision, answer in before.items():
                more: dict[str, Any] = {"model": f"asked@{revision}", "max_tokens": 8, "temperature": 0}
                if messages is None:
                    choice: Any = client.completions.create(prompt="one two", **more).choices[0]
                    text = choice.text
                else:
                    choice = client.chat.completions.create(messages=messages, **more).choices[0]  # type: ignore[call-overload]
                    text = choice.message.content
                assert (answer.text, answer.finish_reason) == (text, choice.finish_reason)
                assert 1 <= answer.num_tokens <= 8


def test_one_on_demand_is_brought(declared: DeclaredPod) -> None:
    revision = told(declared, "asked-lazy", stable=False, residency=Residency.ON_DEMAND)
    assert ask(declared, "asked-lazy", revision, prompt="one two").num_tokens


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"maxTokens": 257}, "maxTokens"),
        ({"maxTokens": 0}, "maxTokens"),
        ({"prompt": "x" * 8193}, "prompt"),
        ({"prompt": None}, "exactly one of prompt, messages"),
        ({"messages": CHAT}, "exactly one of prompt, messages"),
        ({"prompt": None, "messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"prompt": None, "messages": CHAT * 9}, "messages"),
        ({"revision": "main"}, "revision"),
        ({"name": "../x"}, "name"),
        ({"prompt": "one two " * 1000}, "maximum context length"),
    ],
)
def test_what_cannot_be_asked_is_named(declared: DeclaredPod, change: dict[str, Any], named: str) -> None:
    revision = declared_revision(declared)
    body = {"name": "asked-wrong", "revision": revision, "prompt": "one", "maxTokens": 8, **change}
    with pytest.raises(Refused) as caught:
        declared.admin.request("POST", "/admin/v1/ask", {name: v for name, v in body.items() if v is not None})
    assert (caught.value.status, caught.value.reason, caught.value.retryable) == (400, "BadRequest", False)
    assert named in caught.value.message


def declared_revision(declared: DeclaredPod) -> str:
    """The revision of an adapter that these cases share."""
    known = declared.admin.adapter("asked-wrong")
    return known.revision if known is not None else told(declared, "asked-wrong", stable=True)


@pytest.mark.parametrize(("name", "revision"), [("asked-wrong", "0" * 12), ("asked-nobody", "0" * 12)])
def test_what_is_not_here_yet_may_be_asked_again(declared: DeclaredPod, name: str, revision: str) -> None:
    declared_revision(declared)
    with pytest.raises(Refused) as caught:
        ask(declared, name, revision, prompt="one")
    assert (caught.value.status, caught.value.reason, caught.value.retryable) == (503, "Pending", True)


def test_one_question_at_a_time_and_others_go_on(declared: DeclaredPod) -> None:
    revision = declared_revision(declared)
    with ThreadPoolExecutor(2) as others:
        with declared.pod.stopped_engine():
            asked = [others.submit(ask, declared, "asked-wrong", revision, prompt="one") for _ in range(2)]
            refused, running = wait(asked, timeout=60, return_when=FIRST_COMPLETED)
            error = refused.pop().exception()
            assert isinstance(error, Refused)
            assert (error.status, error.retryable) == (503, True)
            assert "another question" in error.message
        assert running.pop().result().num_tokens
    assert ask(declared, "asked-wrong", revision, prompt="one").num_tokens, "and then the next one"


def test_a_question_without_the_token_is_refused(declared: DeclaredPod) -> None:
    assert declared.pod.get("/admin/v1/ask").status_code == 404, "not on the public port"
    answer = declared.admin.http.post("/admin/v1/ask", json={}, headers={"authorization": "Bearer wrong"})
    assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")
    answer = declared.admin.http.get("/admin/v1/ask")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
