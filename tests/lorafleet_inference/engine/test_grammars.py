"""Answers that have to match a grammar do, whatever else is asked of them and whoever is beside them."""

import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llguidance
import msgspec
import pytest
import torch
from support.engines import DrivenEngine
from support.tiny_llama import make_adapter, make_base
from support.tokenizers_made import byte_level
from tokenizers import Tokenizer

from lorafleet_contract.openai import ErrorCode
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.grammars import Constraint, Grammars, GrammarTokenizer
from lorafleet_inference.engine.messages import Cancel, SamplingParams
from lorafleet_inference.engine.plan import InFlight, StepPlan
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
DRAWN = SamplingParams(max_tokens=120, temperature=1.0, num_logprobs=1)


def is_person(value: Any) -> bool:
    assert set(value) == set(PERSON["properties"])
    is_named = isinstance(value["name"], str) and len(value["name"]) <= 5
    is_tagged = len(value["tags"]) <= 3 and set(value["tags"]) <= {"red", "green"}
    return is_named and is_tagged and type(value["age"]) is int and 0 <= value["age"] <= 150


def of_schema(schema: Any) -> str:
    grammar: str = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    return grammar


def of_regex(pattern: str) -> str:
    return llguidance.LLMatcher.grammar_from_regex(pattern)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("grammars")
    make_base(root / "base")
    make_adapter(root / "base", root / "adapter", rank=4, seed=1)
    return root / "base", root / "adapter"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level()


class FailsWithDrafts:
    """A runner of which three steps with draft tokens raise when all is computed."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.num_left = inner, 3

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(self, plan: StepPlan) -> InFlight:
        computing: InFlight = self.inner.submit(plan)
        if self.num_left and plan.has_drafts and len(plan.items) > 1:
            self.num_left -= 1
            raise RuntimeError("once")
        return computing


def engine_of(
    folders: tuple[Path, Path], *, ahead: bool = False, fails: bool = False, **options: object
) -> DrivenEngine:
    base, adapter = folders
    config = EngineConfig(model=str(base), device="cpu", num_threads=1, max_rank=8, **options)  # type: ignore[arg-type]
    wrap = FailsWithDrafts if fails else lambda runner: runner
    engine = DrivenEngine(config, wrap, GrammarTokenizer(byte_level()), ahead=ahead, now=lambda: 0.0)
    engine.register({"adapter": adapter})
    return engine


def text_of(tokenizer: Tokenizer, engine: DrivenEngine, request_id: str) -> str:
    return tokenizer.decode(list(engine.tokens(request_id)), skip_special_tokens=False)


def last(engine: DrivenEngine, request_id: str) -> TokenEvent:
    return [event for event in engine.events() if event.request_id == request_id][-1]


@pytest.mark.parametrize("drafts", [0, 8])
@pytest.mark.parametrize("ahead", [False, True])
def test_every_answer_matches_beside_free_ones_short_of_memory(
    folders: tuple[Path, Path], tokenizer: Tokenizer, *, ahead: bool, drafts: int
) -> None:
    """Preempted, batched with others, drawn or greedy, with penalties and min_tokens, on the base and on an adapter."""
    # 12 blocks of 16 tokens: far less than all of them need
    memory = 12 * 16 * 2 * 2 * 2 * 8 * 4
    engine = engine_of(
        folders, ahead=ahead, max_batch_tokens=64, kv_cache_memory_bytes=memory, speculative_tokens=drafts
    )
    chance = random.Random(3)
    variants = [
        {},
        {"temperature": 0.0},
        {"min_tokens": 12},
        {"repetition_penalty": 1.4, "presence_penalty": 1.0},
        {"logit_bias": tuple((token, -100.0) for token in tokenizer.encode('{"}').ids[1:])},
        {"ignore_eos": True},
        {"top_k": 3, "top_p": 0.5, "min_p": 0.1},
        {"allowed_token_ids": tuple(range(100, 140))},
    ]
    grammars = {of_schema(PERSON): "json", of_regex("(yes|no|maybe)( indeed){0,3}"): "regex"}
    checks: dict[str, str] = {}
    for number, variant in enumerate(variants * 2):
        grammar = chance.choice(list(grammars))
        prompt = [chance.randrange(3, 200) for _ in range(chance.randrange(1, 30))]
        sampling = msgspec.structs.replace(DRAWN, grammar=grammar, seed=number, **variant)
        engine.submit(f"r{number}", chance.choice([None, "adapter"]), prompt, sampling)
        checks[f"r{number}"] = grammars[grammar]
        engine.submit(f"free{number}", None, prompt, msgspec.structs.replace(DRAWN, max_tokens=20, ignore_eos=True))
    engine.run_until_ended([*checks, *(f"free{number}" for number in range(len(checks)))])
    assert engine.num_preempted > 0
    assert any(event.num_accepted_tokens for event in engine.events() if event.request_id in checks) == bool(drafts)
    assert engine.most_in_flight == ahead
    for request_id, kind in checks.items():
        text = text_of(tokenizer, engine, request_id)
        assert last(engine, request_id).finish is FinishReason.STOP, (request_id, text, last(engine, request_id))
        if kind == "regex":
            assert re.fullmatch("(yes|no|maybe)( indeed){0,3}", text)
        else:
            assert is_person(json.loads(text)), text
    assert all(len(engine.tokens(f"free{number}")) == 20 for number in range(len(checks)))


FORCED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "first_name": {"enum": ["ann", "bob"]},
        "shoe_size": {"type": "integer", "maximum": 60, "minimum": 0},
    },
    "required": ["first_name", "shoe_size"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("model", [False, True], ids=["looked-up", "model"])
def test_forms_are_drafted_and_answers_are_as_without(
    folders: tuple[Path, Path], tokenizer: Tokenizer, *, ahead: bool, model: bool
) -> None:
    """What the form says itself is drafted first, other drafts are cut where they leave it: on base and adapter, beside free
    answers, with logprobs, stops within drafts, ends of their own, and while steps fail."""
    answers, logprobs, spared, told = [], [], [], []
    stops = (tokenizer.encode("d", add_special_tokens=False).ids[-1],)
    asked: list[tuple[str | None, dict[str, Any]]] = [
        (of_schema(FORCED), {}),
        (of_regex("(yes|no)( indeed){4,6}"), {}),
        (of_regex("(yes|no)( indeed){4,6}"), {"stop_token_ids": stops}),
        (of_regex("(yes|no)( indeed){4,6}"), {"eos_token_ids": stops, "temperature": 0.0}),
        (of_schema(FORCED), {"min_tokens": 30, "max_draft_tokens": 3}),
        (of_schema(PERSON), {"ignore_eos": True}),
        (of_regex("[ab]{3,9}"), {}),
        (None, {}),
    ]
    drafting: dict[str, object] = {
        "speculative_tokens": 8,
        "speculative_model": str(folders[0]) if model else None,
        "fails": True,
    }
    for options in ({}, drafting):
        engine = engine_of(folders, ahead=ahead, **options)
        names = [f"r{number}" for number in range(2 * len(asked))]
        for begin in (0, 8):  # as long as nothing is known of what a step takes, more than eight are not drafted
            for number in range(begin, begin + 8):
                grammar, fields = asked[number // 2]
                sampling = msgspec.structs.replace(DRAWN, grammar=grammar, seed=number, max_tokens=60, **fields)
                adapter = "adapter" if number % 2 else None
                engine.submit(names[number], adapter, [5, 6, number + 3] * 3, sampling)
            engine.run_until_ended(names[begin : begin + 8])
        said = {name: [event for event in engine.events() if event.request_id == name] for name in names}
        answers.append({name: (engine.tokens(name), events[-1].finish) for name, events in said.items()})
        logprobs.append([value for name in names for value in logprobs_of(said[name])])
        spared.append(sum(event.num_accepted_tokens for name in names[:2] for event in said[name]))
        told.append({name for name, events in said.items() if any(event.num_accepted_tokens for event in events)})
        assert is_shoe(json.loads(text_of(tokenizer, engine, "r0")))
        assert engine.most_in_flight == ahead
        assert engine.engine._steps.num_failed == (3 if options else 0)
        assert max(event.num_draft_tokens for name in names[8:10] for event in said[name]) == (3 if options else 0)
    assert answers[0] == answers[1]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4), "sums of another batch differ in their last digits"
    assert not told[0]
    assert {"r0", "r1", "r2", "r3", "r4", "r8"} <= told[1]
    assert spared[0] == 0
    assert spared[1] > 20, "of the names in two objects at least"


def logprobs_of(events: list[TokenEvent]) -> list[float]:
    """Of each token its own and the most likely one's."""
    found = [one for event in events for one in event.logprobs or () if one is not None]
    return [value for one in found for value in (one.chosen, one.top[0][1])]


def is_shoe(value: Any) -> bool:
    return value["first_name"] in ("ann", "bob") and 0 <= value["shoe_size"] <= 60


def constraints_of(grammars: Grammars, grammar: str, end: int, *names: str) -> list[Constraint]:
    found = []
    for name in names:
        grammars.compile(name, grammar, lambda _: None, [end])
        deadline = time.monotonic() + 60
        while (one := grammars.constraint(name)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found.append(one)
    return found


@pytest.mark.parametrize(
    "grammar",
    [of_regex("no(nono)?"), of_regex("[a-c]{2,9}(!|\\?)"), of_schema(FORCED), of_schema(PERSON)],
    ids=["ends twice", "classes", "names", "strings"],
)
def test_masks_along_a_draft_are_those_of_its_tokens_one_after_the_other(tokenizer: Tokenizer, grammar: str) -> None:
    """Of answers that are drawn from the masks; of the same draft again, and beside one that has none."""
    grammars, end, chance = Grammars(GrammarTokenizer(tokenizer), lambda job: job()), 1, random.Random(5)

    def said(name: str, num_drafted: int = 0) -> list[int]:
        mask = grammars.mask(name, num_drafted)
        assert mask is not None
        return [at for at in range(8 * len(mask)) if mask[at // 8] >> at % 8 & 1]

    drafted, stepped, _ = constraints_of(grammars, grammar, end, "drafted", "stepped", "beside")
    expected, draft, goes_on = list[list[int]](), list[int](), True
    while goes_on and len(draft) < 40:
        grammars.begin_step({"stepped": ()})
        expected.append(said("stepped"))
        draft.append(chance.choice([token for token in expected[-1] if token != end]))
        goes_on = stepped.accept(draft[-1])
    assert drafted.allowed([*draft, draft[0]]) >= len(draft)
    for _ in range(2):
        grammars.begin_step({"drafted": tuple(draft), "beside": ()})
        assert [said("drafted", at) for at in range(len(draft))] == expected, "and nothing was taken in"
        assert said("beside") == expected[0]
        assert (grammars.mask("drafted", len(draft)) is None) is not goes_on, "nothing follows what is complete"
    for at, token_id in enumerate(draft):
        forced = drafted.forced()
        assert drafted.allowed(forced) == len(forced)
        assert drafted.accept(token_id) == (goes_on or at < len(draft) - 1)
    grammars.close()


def test_tokens_that_a_tokenizer_does_not_know_leave_the_form_and_do_no_harm(tokenizer: Tokenizer) -> None:
    """Prompts may have some: an adapter's own, or rows of an embedding that no token has."""
    made = GrammarTokenizer(tokenizer)
    grammars = Grammars(made, lambda job: job())
    (one,) = constraints_of(grammars, of_regex("no"), 1, "r")
    n, o = tokenizer.encode("no", add_special_tokens=False).ids
    for unknown in (made.trie.vocab_size, 10**6, made.end, 1):
        assert one.allowed([unknown, n]) == 0
        assert one.allowed([n, unknown, o]) == 1
    assert one.problem is None
    assert one.allowed([n, o]) == 2
    grammars.close()


def test_a_step_waits_for_masks_that_a_failed_one_never_asked_for(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No matcher can be asked for anything meanwhile."""
    grammars = Grammars(GrammarTokenizer(tokenizer), lambda job: job())
    constraints_of(grammars, of_regex("no"), 1, "r")
    told: list[str] = []

    class Slow:
        """Takes a while."""

        def unsafe_compute_mask_ptr(self, *_: object) -> None:
            told.append("begun")
            time.sleep(0.1)
            told.append("ended")

    monkeypatch.setattr(grammars, "_executor", Slow())
    for _ in range(3):
        grammars.begin_step({"r": ()})
        told.append("returned")
    assert [at for at in told if at != "begun"][:4] == ["returned", "ended", "returned", "ended"]
    grammars.close()


def test_same_seed_same_answer_with_and_without_neighbours(folders: tuple[Path, Path]) -> None:
    sampling = msgspec.structs.replace(DRAWN, grammar=of_schema(PERSON), seed=11)
    alone, crowded = engine_of(folders), engine_of(folders)
    alone.submit("one", None, [5, 6, 7], sampling)
    for number in range(8):
        crowded.submit(f"n{number}", "adapter", [9, number + 3], msgspec.structs.replace(sampling, seed=number))
    crowded.submit("one", None, [5, 6, 7], sampling)
    alone.run_until_ended(["one"])
    crowded.run_until_ended(["one"])
    assert alone.tokens("one") == crowded.tokens("one")


def test_the_answer_ends_by_length_and_by_its_own_end_tokens(folders: tuple[Path, Path], tokenizer: Tokenizer) -> None:
    """An end token ends where the grammar may end and nowhere else; the model's end token is no text of a grammar."""
    engine = engine_of(folders)
    digits = of_regex("[0-9]+")
    own_end = tokenizer.encode("7").ids[-1]
    eos = tokenizer.token_to_id("</s>")
    engine.submit("cut", None, [5], msgspec.structs.replace(DRAWN, max_tokens=3, grammar=of_regex("a{50}")))
    engine.submit("wants", None, [5], msgspec.structs.replace(DRAWN, grammar=digits, logit_bias=((eos, 100.0),)))
    adapted = msgspec.structs.replace(DRAWN, grammar=digits, logit_bias=((own_end, 100.0),), eos_token_ids=(own_end,))
    engine.submit("own", None, [5], adapted)
    engine.run_until_ended(["cut", "wants", "own"])
    assert last(engine, "cut").finish is FinishReason.LENGTH
    for name in ("wants", "own"):
        assert last(engine, name).finish is FinishReason.STOP
        assert re.fullmatch("[0-9]", text_of(tokenizer, engine, name)), "one digit, then the end that it wants most"


@pytest.mark.parametrize(
    ("grammar", "named"),
    [
        (of_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (of_schema({"not": {"type": "string"}}), "not"),
        (of_schema({"$ref": "https://example.com/schema"}), "example.com"),
        (of_schema({"type": "string", "format": "nonsense"}), "nonsense"),
        (of_regex("(unclosed"), ""),
        ("start: missing", "missing"),
        ('start: "a"\n' + "\n".join(f'r{i}: r{i + 1} r{i + 1} "x"' for i in range(30)) + '\nr30: "a"', ""),
    ],
)
def test_what_cannot_be_enforced_is_refused_before_it_runs(
    folders: tuple[Path, Path], grammar: str, named: str
) -> None:
    engine = engine_of(folders)
    engine.submit("bad", None, [5], msgspec.structs.replace(DRAWN, grammar=grammar))
    engine.submit("again", None, [5], msgspec.structs.replace(DRAWN, grammar=grammar))
    engine.run_until_ended(["bad", "again"])
    for name in ("bad", "again"):
        event = last(engine, name)
        if not named and event.finish is FinishReason.STOP:
            continue  # large, and enforced
        assert (event.finish, event.code) == (FinishReason.ERROR, ErrorCode.INVALID_VALUE)
        assert named in (event.error or "")
        assert len(event.error or "") < 700


def test_a_grammar_is_compiled_once_and_those_who_leave_meanwhile_are_forgotten(folders: tuple[Path, Path]) -> None:
    engine = engine_of(folders)
    sampling = msgspec.structs.replace(DRAWN, grammar=of_regex("[a-z]{3}"))
    for number in range(6):
        engine.submit(f"r{number}", None, [5], msgspec.structs.replace(sampling, seed=number))
    engine.inbox.put(Cancel("r2"))
    engine.run_until_ended([f"r{number}" for number in range(6)])
    assert last(engine, "r2").finish is FinishReason.CANCELLED
    assert not engine.tokens("r2")
    grammars = engine.engine._choices.grammars
    assert grammars.num_compiled == 1
    assert not grammars._constraints
    assert grammars.num_waiting == 0
    assert engine.engine._stats().num_grammars == 1


def test_without_a_tokenizer_grammars_are_refused(folders: tuple[Path, Path]) -> None:
    config = EngineConfig(model=str(folders[0]), device="cpu", num_threads=1)
    engine = DrivenEngine(config)
    engine.submit("one", None, [5], msgspec.structs.replace(DRAWN, grammar=of_regex("a")))
    engine.run_until_ended(["one"])
    assert last(engine, "one").code is ErrorCode.INVALID_VALUE
