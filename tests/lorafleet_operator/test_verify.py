"""No request reaches a revision that does not answer as its owner says it must; who cannot be asked is no verdict."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from support import operator_views as v

from lorafleet_contract.admin import AdminError
from lorafleet_contract.reasons import Reason
from lorafleet_contract.verify import VerifyPrompt, VerifyResult, VerifySpec, VerifyStatus
from lorafleet_operator import metrics
from lorafleet_operator.decide.verify import PENDING, Verdict, problem_of, verdict_of, verify_after, verify_key

from .test_rollout_by_steps import PROGRESSING, ROLLED_BACK, TIMED, Story

VERIFY = {
    "prompts": [
        {"name": "one", "prompt": "say one", "expect": {"contains": "say one"}},
        {"name": "two", "messages": [{"role": "user", "content": "say two"}], "expect": {"matches": "^p[0-9]+:"}},
    ]
}
BAD = {"prompts": [{"name": "roman", "prompt": "4", "maxTokens": 4, "expect": {"equals": "IV"}}]}
NOW = v.NOW
LOADING = "Loading"


def prompt(**expect: str) -> VerifyPrompt:
    return VerifyPrompt.model_validate({"name": "x", "prompt": "4", "expect": expect})


@pytest.mark.parametrize(
    ("expect", "answer", "is_so"),
    [
        ({"equals": "IV"}, " IV\n", True),
        ({"equals": " IV "}, "IV", True),
        ({"equals": "IV"}, "IV.", False),
        ({"contains": "IV"}, "it is IV.", True),
        ({"contains": "iv"}, "it is IV.", False),
        ({"matches": "^[IVX]+$"}, "IV", True),
        ({"matches": "[0-9]"}, "it is 4.", True),
        ({"matches": "^[0-9]"}, "it is 4.", False),
        ({"matches": r"(?i)^vierzig\b"}, "Vierzig Äpfel", True),
        ({"equals": ""}, "  ", True),
    ],
)
def test_what_has_to_come(expect: dict[str, str], answer: str, is_so: bool) -> None:
    assert (problem_of(prompt(**expect), answer) is None) == is_so


def test_a_failure_says_what_was_expected_and_what_came() -> None:
    assert problem_of(prompt(equals="IV"), "I\nV") == 'expected an answer equal to "IV", and it is "I\\nV"'
    long = problem_of(prompt(contains="x" * 1000), "y" * 5000)
    assert long is not None
    assert len(long) < 512
    assert "…" in long


@pytest.mark.parametrize(
    ("pattern", "named"), [("(", "missing"), ("(?=x)", "invalid"), ("((a{100}){100}){100}", ""), ("x" * 257, "257")]
)
def test_a_pattern_that_is_none_fails_the_check(pattern: str, named: str) -> None:
    told = problem_of(prompt(matches=pattern), "x")
    assert told is not None
    assert told.startswith("matches: ")
    assert named in told


def test_no_pattern_takes_long() -> None:
    began = time.process_time()
    assert problem_of(prompt(matches="(a+)+$"), "a" * 5000 + "b") is not None
    assert problem_of(prompt(matches="(a|aa)+$" * 20), "a" * 5000 + "b") is not None
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "change",
    [
        {"expect": {}},
        {"expect": {"equals": "x", "contains": "x"}},
        {"prompt": None},
        {"messages": [{"role": "user", "content": "x"}]},
    ],
)
def test_one_question_and_one_expectation(change: dict[str, Any]) -> None:
    given = {"name": "x", "prompt": "4", "expect": {"equals": "IV"}, **change}
    with pytest.raises(ValidationError, match="exactly one of"):
        VerifyPrompt.model_validate(given)


def test_a_verdict_is_of_a_revision_the_questions_and_the_try() -> None:
    spec = VerifySpec.model_validate(VERIFY)
    adapter, desired = v.adapter("a", verify=spec), v.artifact("new")
    key = verify_key(adapter, desired.revision)
    assert verdict_of(v.adapter("a"), desired, None, {}) is None, "nothing is asked"
    assert verdict_of(adapter, desired, desired.revision, {}) is None, "it answers already"
    assert verdict_of(adapter, desired, "0" * 12, {}) == PENDING
    passed = Verdict(True)
    assert verdict_of(adapter, desired, "0" * 12, {key: passed}) == passed
    told = verify_after(adapter, desired, passed, NOW)
    assert told is not None
    assert (told.revision, told.result, told.check) == (desired.revision, VerifyResult.PASSED, None)
    status = adapter.status.model_copy(update={"verify": told})
    knows = adapter.model_copy(update={"status": status})
    assert verdict_of(knows, desired, "0" * 12, {}) == passed, "it is remembered"
    assert verify_after(knows, desired, passed, NOW + timedelta(hours=1)) == told
    assert verify_after(knows, desired, None, NOW) == told, "also when it is the stable one"
    other = knows.model_copy(update={"spec": knows.spec.model_copy(update={"verify": VerifySpec.model_validate(BAD)})})
    again = knows.model_copy(
        update={"metadata": knows.metadata.model_copy(update={"annotations": {"lorafleet.io/retry": "2"}})}
    )
    for changed in (other, again):
        assert verdict_of(changed, desired, "0" * 12, {}) == PENDING
        assert verify_after(changed, desired, PENDING, NOW) is None
    assert verify_after(knows, v.artifact("newer"), PENDING, NOW) is None
    slower = spec.model_copy(update={"timeout_seconds": 5})
    patient = knows.model_copy(update={"spec": knows.spec.model_copy(update={"verify": slower})})
    assert verdict_of(patient, desired, "0" * 12, {}) == passed, "how long it may take is no other question"


@pytest.fixture
def story() -> Iterator[Story]:
    it = Story()
    yield it
    it.close()


def apply(story: Story, path: str, verify: dict[str, Any], steps: list[dict[str, Any]] | None = None) -> None:
    async def apply() -> None:
        story.fleet.adapter("a", path, placement={"mode": "All"}, verify=verify, rollout={"steps": steps or []})

    story.do(apply())


def asked(story: Story) -> list[str]:
    """Revisions that pods were asked, one for each question."""
    return [question.revision for pod in story.fleet.pods.values() for question in pod.asked]


def counted(result: str) -> float:
    name = "lorafleet_operator_verifications_total"
    return metrics.REGISTRY.get_sample_value(name, {"result": result}) or 0.0


def test_the_name_moves_to_what_answers_as_it_must(story: Story) -> None:
    before, old, new = counted("passed"), story.revision("p1"), story.revision("p2")
    apply(story, "p2", VERIFY)
    story.until(lambda it: it.stable == new)
    assert asked(story) == [new, new], "each question once, of one pod"
    told = VerifyStatus.model_validate(story.status["verify"])
    assert (told.revision, told.result, told.message) == (new, VerifyResult.PASSED, None)
    assert counted("passed") == before + 1
    assert story.fleet.condition("a") == ("True", "Serving")
    story.wait(120)

    assert asked(story) == [new, new]
    assert old not in asked(story)


def test_what_answers_otherwise_gets_no_request_until_it_is_another_question(story: Story) -> None:
    old, new = story.revision("p1"), story.revision("p2")
    apply(story, "p2", BAD)
    story.until(lambda it: it.fleet.condition("a") == ("False", "VerifyFailed"))
    story.wait(20)
    assert asked(story) == [new], "it is asked once"
    assert story.stable == old
    assert set(story.answers()) == {old}
    ready = next(one for one in story.status["conditions"] if one["type"] == "Ready")
    assert ready["message"] == (f'revision {new}: check roman: expected an answer equal to "IV", and it is "p2: 4"')
    assert story.fleet.condition("a", "Stalled") == ("True", "VerifyFailed")
    assert story.fleet.condition("a", "Available") == ("True", "Serving")
    story.until(lambda it: it.held("p2") == [False, False])
    story.annotate(retry="1")
    story.until(lambda it: asked(it) == [new, new])
    story.until(lambda it: it.fleet.condition("a") == ("False", "VerifyFailed"))
    story.fleet.library.answers["p2"] = "IV"
    story.annotate(retry="2")
    story.until(lambda it: it.stable == new)
    assert asked(story) == [new] * 3
    assert story.status["verify"]["result"] == "Passed"


def test_the_first_revision_is_asked_too(story: Story) -> None:
    async def apply() -> None:
        story.fleet.adapter("b", "p7", verify=BAD)

    story.do(apply())
    story.until(lambda it: it.fleet.condition("b") == ("False", "VerifyFailed"))
    story.wait(10)
    assert story.fleet.status("b").get("stableRevision") is None
    assert not any(pod.stable("b") for pod in story.fleet.pods.values())

    async def mend() -> None:
        story.fleet.adapter("b", "p7", verify=VERIFY)

    story.do(mend())
    story.until(lambda it: it.fleet.condition("b") == ("True", "Serving"))


def test_no_step_is_taken_by_what_answers_otherwise(story: Story) -> None:
    old, new = story.revision("p1"), story.revision("p2")
    apply(story, "p2", BAD, TIMED)
    story.until(lambda it: it.phase == ROLLED_BACK)
    story.wait(10)
    assert (story.rollout["reason"], story.stable) == ("VerifyFailed", old)
    assert story.fleet.condition("a") == ("False", "VerifyFailed")
    assert all(weights in ([], [100]) for weights in story.traffic), story.traffic
    assert story.history[0] == (new, "RolledBack", "VerifyFailed")
    story.annotate(promote=new)
    story.wait(10)
    assert story.stable == old, "a person who promotes does not know better than the check; he takes it away"
    apply(story, "p2", VERIFY, TIMED)
    story.until(lambda it: it.phase == PROGRESSING or it.stable == new)
    assert asked(story) == [new] * 3


def test_a_pod_that_cannot_be_asked_is_no_verdict(story: Story) -> None:
    """One of the last release has no such route: the reason says so, and the revision waits."""
    old, new, unanswered = story.revision("p1"), story.revision("p2"), counted("unanswered")
    missing = AdminError(reason=Reason.NOT_FOUND, message="POST /admin/v1/ask: Not Found")
    for pod in story.fleet.pods.values():
        pod.ask_error = (404, missing)
    apply(story, "p2", VERIFY, TIMED)
    story.until(lambda it: it.fleet.condition("a") == ("False", "VerifyUnavailable"))
    message = next(one for one in story.status["conditions"] if one["type"] == "Ready")["message"]
    assert "cannot be asked: its version has no /admin/v1/ask" in message
    story.wait(200)
    num_asked = len(asked(story))
    assert 4 < num_asked < 20, "again and again, and more and more seldom"
    assert counted("unanswered") - unanswered == num_asked
    assert (story.phase, story.stable) == (LOADING, old)
    assert story.fleet.condition("a", "Stalled")[0] != "True"
    for pod in story.fleet.pods.values():
        pod.ask_error = (503, AdminError(reason=Reason.PENDING, message="another question", retryable=True))
    story.wait(70)
    for pod in story.fleet.pods.values():
        pod.ask_error = None
    story.until(lambda it: it.phase == PROGRESSING)
    assert story.status["verify"]["revision"] == new


def test_a_pod_that_hangs_is_asked_no_longer_than_it_may_take(story: Story) -> None:
    for pod in story.fleet.pods.values():
        pod.ask_seconds = 500.0
    apply(story, "p2", {**VERIFY, "timeoutSeconds": 5})
    story.until(lambda it: it.fleet.condition("a") == ("False", "VerifyUnavailable"))
    for pod in story.fleet.pods.values():
        pod.ask_seconds = 0.0
    story.until(lambda it: it.stable == it.revision("p2"))


def test_what_the_pod_refuses_to_answer_is_a_failure(story: Story) -> None:
    for pod in story.fleet.pods.values():
        pod.ask_error = (422, AdminError(reason=Reason.LOAD_FAILED, message="numbers that are not finite"))
    apply(story, "p2", VERIFY)
    story.until(lambda it: it.fleet.condition("a") == ("False", "VerifyFailed"))
    assert story.status["verify"]["message"] == "it cannot be asked: numbers that are not finite"
    assert story.status["verify"]["check"] == "one"


def test_a_verdict_outlives_the_operator(story: Story) -> None:
    apply(story, "p2", BAD)
    story.until(lambda it: it.fleet.condition("a") == ("False", "VerifyFailed"))
    num_asked = len(asked(story))

    story.do(story.fleet.processes[0].kill())
    story.wait(90)
    assert len(asked(story)) == num_asked
    assert story.fleet.condition("a") == ("False", "VerifyFailed")
    assert story.stable == story.revision("p1")
