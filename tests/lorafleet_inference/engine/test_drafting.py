"""A draft model: what it keeps, what it proposes, and that answers are as without."""

import argparse
import json
import shutil
from pathlib import Path

import msgspec
import pytest
from support.engines import DrivenEngine
from support.models import adapters_of, model_folder
from support.ranks import ranked
from support.tiny_device import FIRST_PLAIN, MAX_MODEL_LEN, TRAP, VOCAB_SIZE, TinyDevice, ticking

from lorafleet_common.errors import ConfigError
from lorafleet_common.options import add_options, read_values
from lorafleet_inference.base_folder import named_base
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.drafting import MAX_CATCH_UP_TOKENS, Drafter
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.pace import Pace
from lorafleet_inference.engine.plan import DraftWanted, NewRequest, StepItem, StepPlan
from lorafleet_inference.engine.speculation import DraftLength, is_worthwhile
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.model.draft import check_vocabularies, load_runners
from lorafleet_inference.options import OPTIONS

ALL = Vocabulary(VOCAB_SIZE, VOCAB_SIZE)
DRAWN = SamplingParams(max_tokens=100, temperature=1, seed=5)


def drafter_of(
    device: TinyDevice, *, vocabulary: Vocabulary = ALL, prefix_caching: bool = True, max_requests: int = 8
) -> Drafter:
    now, _ = ticking()
    return Drafter(device, vocabulary=vocabulary, max_requests=max_requests, prefix_caching=prefix_caching, now=now)


def wanted(
    token_ids: list[int], number: int = 4, name: str = "r", num_prompt: int = 3, sampling: SamplingParams = DRAWN
) -> DraftWanted:
    return DraftWanted(name, token_ids, num_prompt, sampling, "", number)


def followed(token_ids: list[int], number: int, sampling: SamplingParams = DRAWN, num_prompt: int = 3) -> list[int]:
    """What the same model chooses when it computes all anew, token by token."""
    device, tokens = TinyDevice(), list(token_ids)
    for _ in range(number):
        blocks = tuple(range(-(-len(tokens) // 16)))
        new = NewRequest("fresh", None, tuple(tokens), num_prompt, sampling, blocks)
        item = StepItem("fresh", 0, len(tokens), samples=True)
        result = device.compute(StepPlan((item,), gone=("fresh",), new=(new,)))
        tokens.append(result.sampled["fresh"].token_id)
    return tokens[len(token_ids) :]


def prompt_of(length: int, step: int = 1) -> list[int]:
    return [FIRST_PLAIN + at * step % 11 for at in range(length)]


def test_it_proposes_what_the_draft_model_goes_on_with_whatever_became_of_its_last_proposal() -> None:
    device = TinyDevice(num_blocks=24)
    drafter, tokens = drafter_of(device), prompt_of(20)
    for number, num_right, others in (
        (4, 4, [7]),
        (4, 2, [9]),
        (1, 0, [6]),
        (6, 6, []),
        (3, 0, [8, 9, 7, 5, 12]),
        (4, 4, [6]),
    ):
        drafted = drafter.propose([wanted(tokens, number)])["r"]
        assert list(drafted) == followed(tokens, number)
        tokens += [*drafted[:num_right], *others]
    drafter.end("r")
    assert drafter.num_blocks_used == 0


def test_several_have_their_next_tokens_in_one_step_each_as_long_as_it_wants_more() -> None:
    device = TinyDevice(num_blocks=24)
    plans: list[StepPlan] = []
    compute = device.compute
    device.compute = lambda plan: plans.append(plan) or compute(plan)  # type: ignore[method-assign,func-returns-value]
    asked = {"a": (prompt_of(5), 3), "b": (prompt_of(40, 3), 1), "c": (prompt_of(9, 5), 2)}
    drafted = drafter_of(device).propose([wanted(tokens, most, name) for name, (tokens, most) in asked.items()])
    assert drafted == {name: tuple(followed(tokens, most)) for name, (tokens, most) in asked.items()}
    assert [[item.request_id for item in plan.items] for plan in plans] == [["a", "b", "c"], ["a", "c"], ["a"]]


def test_what_another_request_had_computed_is_found() -> None:
    device = TinyDevice(num_blocks=24)
    drafter, tokens = drafter_of(device), prompt_of(50)
    first = drafter.propose([wanted(tokens, name="first")])["first"]
    computed: list[int] = []
    compute = device.compute

    def counting(plan: StepPlan):  # type: ignore[no-untyped-def]
        computed.append(plan.num_tokens)
        return compute(plan)

    device.compute = counting  # type: ignore[method-assign]
    assert drafter.propose([wanted(tokens, name="second")])["second"] == first
    assert computed == [2, 1, 1, 1], "48 tokens lie in three blocks"
    assert drafter.num_blocks_used == 5


def test_long_prompts_are_caught_up_with_in_pieces() -> None:
    device = TinyDevice(num_blocks=64, max_requests=8)
    drafter = drafter_of(device, prefix_caching=False)
    names = [f"r{number}" for number in range(6)]
    assert MAX_CATCH_UP_TOKENS < 6 * 100
    asked = [wanted(prompt_of(100, 1 + at), 2, name) for at, name in enumerate(names)]
    first = drafter.propose(asked)
    assert list(first) == names[:5]
    second = drafter.propose(asked)
    assert second == {one.request_id: tuple(followed(list(one.token_ids), 2)) for one in asked}


def test_who_is_not_asked_for_makes_room_and_comes_back() -> None:
    drafter = drafter_of(TinyDevice(num_blocks=4), prefix_caching=False)
    one, other = wanted(prompt_of(40), name="one"), wanted(prompt_of(30, 3), name="other")
    assert list(drafter.propose([one])) == ["one"]
    assert list(drafter.propose([other])) == ["other"], "one has given up its three blocks"
    assert list(drafter.propose([other, one])) == ["other"], "nobody who is asked for gives way"
    assert drafter.propose([one]) == {"one": tuple(followed(list(one.token_ids), 4))}
    few = drafter_of(TinyDevice(), max_requests=1)
    assert [list(few.propose([each])) for each in (one, other, one)] == [["one"], ["other"], ["one"]]


def test_nothing_is_proposed_that_one_of_the_models_does_not_know() -> None:
    tokens = prompt_of(12)
    right = followed(tokens, 8)
    largest = max(right)
    cut = drafter_of(TinyDevice(), vocabulary=Vocabulary(largest, largest)).propose([wanted(tokens, 8)])
    assert cut.get("r", ()) == tuple(right[: right.index(largest)])
    drafter = drafter_of(TinyDevice())
    own = wanted([*tokens, VOCAB_SIZE + 1], name="own")
    biased = wanted(tokens, name="biased", sampling=msgspec.structs.replace(DRAWN, logit_bias=((VOCAB_SIZE, 1.0),)))
    for _ in range(2):
        assert list(drafter.propose([own, biased, wanted(tokens)])) == ["r"]
    assert drafter.propose([wanted(prompt_of(MAX_MODEL_LEN), name="long")]) == {}


def test_a_draft_model_that_fails_leaves_answers_to_go_on_without() -> None:
    device = TinyDevice()
    drafter = drafter_of(device)
    tokens = prompt_of(12)
    drafter.propose([wanted(tokens)])
    trapped = wanted([*tokens, TRAP, 6], name="trapped")
    assert drafter.propose([wanted(tokens), trapped]) == {}
    assert drafter.num_blocks_used == 0
    assert drafter.propose([wanted(tokens)]) == {"r": tuple(followed(tokens, 4))}


def test_what_a_round_takes_counts_and_is_forgotten_again() -> None:
    device, (now, move) = TinyDevice(), ticking()
    compute = device.compute

    def slow(plan: StepPlan):  # type: ignore[no-untyped-def]
        move(0.25)
        return compute(plan)

    device.compute = slow  # type: ignore[method-assign]
    drafter = Drafter(device, vocabulary=ALL, max_requests=8, prefix_caching=True, now=now)
    assert drafter.round_seconds == 0.0
    drafter.propose([wanted(prompt_of(9))])
    assert drafter.round_seconds == pytest.approx(0.25)
    drafter.propose([])
    assert 0.2 < drafter.round_seconds < 0.25
    pace = Pace(0.3, fixed=0.040, prompt_token=0.004, answer_token=0.005)
    assert is_worthwhile(pace, 1, 1.0, round_seconds=0.030)
    assert not is_worthwhile(pace, 1, 0.5, round_seconds=0.030), "half of its tokens are wrong"
    assert not is_worthwhile(pace, 60, 0.8, round_seconds=0.300), "of large batches a round takes longer"


def test_a_draft_model_has_patience_with_wrong_drafts() -> None:
    drafts, tokens, numbers = DraftLength(8, patience=2), [1], []
    for _ in range(8):
        number = drafts.number(tokens, 99)
        numbers.append(number)
        if number:
            drafts.told(number, 0, len(tokens))
        tokens.append(1)
    assert numbers == [4, 1, 1, 0, 1, 0, 0, 1]
    before = drafts.right_part
    drafts.hope()
    assert before < drafts.right_part < 1


def config_of(family: str, draft: Path | None, number: int = 6, **options: object) -> EngineConfig:
    return EngineConfig(
        model=str(model_folder(family)),
        device="cpu",
        dtype="float32",
        kv_cache_memory_bytes=1 << 20,
        speculative_tokens=number if draft else 0,
        speculative_model=None if draft is None else str(draft),
        num_threads=1,
        **options,  # type: ignore[arg-type]
    )


SAMPLINGS = (
    SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, num_logprobs=2),
    SamplingParams(max_tokens=40, temperature=1, seed=3, ignore_eos=True, top_p=0.9),
    SamplingParams(max_tokens=40, temperature=0.7, seed=4, ignore_eos=True, max_draft_tokens=0),
    SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, presence_penalty=0.5),
    SamplingParams(max_tokens=40, temperature=1, seed=6, ignore_eos=True, logit_bias=((7, 3.0),)),
    SamplingParams(max_tokens=40, temperature=1, seed=7, stop_token_ids=(9, 12, 20)),
)
NAMES = tuple(f"r{at}" for at in range(len(SAMPLINGS)))


def answered(engine: DrivenEngine, adapters: dict[str, Path]) -> list[tuple[int, ...]]:
    engine.register(adapters)
    names = (None, None, *adapters)
    for at, (name, sampling) in enumerate(zip(NAMES, SAMPLINGS, strict=True)):
        engine.submit(name, names[at % len(names)], [11 + at, 12, 13, 14] * 5, sampling)
    engine.run_until_ended(NAMES)
    return [engine.tokens(name) for name in NAMES]


def share(engine: DrivenEngine, *names: str) -> float:
    told = [event for event in engine.events() if event.request_id in names]
    num_drafted = sum(event.num_draft_tokens for event in told)
    return sum(event.num_accepted_tokens for event in told) / num_drafted if num_drafted else -1.0


@pytest.mark.parametrize("ahead", [False, True])
def test_engine_answers_the_same_with_a_draft_model(*, ahead: bool) -> None:
    """Greedy and drawn, of the base and of adapters, beside requests that are not drafted; the draft is the base itself."""
    folder = model_folder("llama")
    adapters = dict(list(adapters_of("llama").items())[:2])
    plain = answered(DrivenEngine(config_of("llama", None)), adapters)
    engine = DrivenEngine(config_of("llama", folder), ahead=ahead)
    assert answered(engine, adapters) == plain
    assert share(engine, "r0", "r1") == 1.0, "the same model draws the same, with the same seeds"
    assert share(engine, "r2", "r3") == -1.0
    assert (1 << 19) - (1 << 13) < engine.runner.budgets.kv_cache_bytes <= 1 << 19, (
        "half of the memory is the draft model's"
    )


def test_engine_answers_the_same_with_a_draft_model_that_knows_nothing_on_two_ranks() -> None:
    adapters = dict(list(adapters_of("llama").items())[:2])
    draft = model_folder("qwen2")
    plain = answered(DrivenEngine(config_of("llama", None)), adapters)
    with ranked(config_of("llama", draft), 2) as engine:
        assert answered(engine, adapters) == plain
        assert 0 <= share(engine, *NAMES) < 0.5


def test_a_model_of_another_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    folder = model_folder("llama")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["NoModel"], "model_type": "nothing"}))
    with pytest.raises(ConfigError) as unknown:
        load_runners(config_of("llama", other))
    assert unknown.value.option == "--speculative-model"
    with pytest.raises(ConfigError) as useless:
        EngineConfig(model="", speculative_model="x")
    assert useless.value.option == "--speculative-model"


def test_options_name_a_draft_model(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()

    def config(*options: str, drafts: bool = True) -> EngineConfig:
        parser = argparse.ArgumentParser()
        add_options(parser, OPTIONS)
        values = read_values(OPTIONS, parser.parse_args([f"--model={tmp_path}", *options]), {})
        return named_base(values, tmp_path / "cache", drafts=drafts).brought()

    named = ("--speculative-tokens=4", f"--speculative-model={folder}")
    assert config(*named).speculative_model == str(folder)
    assert config(*named, drafts=False).speculative_model is None, "further hosts of a base have none"
    assert config("--speculative-tokens=4").speculative_model is None
    for bad in ((named[1],), (named[0], "--speculative-model=/nowhere"), (named[0], "--speculative-model=s3:///x")):
        with pytest.raises(ConfigError) as refused:
            config(*bad)
        assert refused.value.option == "--speculative-model"


def tokenizer_in(folder: Path, words: dict[str, int]) -> Path:
    folder.mkdir()
    model = {"type": "WordLevel", "vocab": words, "unk_token": "?"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return folder


def test_tokenizers_say_whether_two_vocabularies_are_one(tmp_path: Path) -> None:
    base = tokenizer_in(tmp_path / "base", {"?": 0, "one": 1, "two": 2})
    same = tokenizer_in(tmp_path / "same", {"two": 2, "one": 1, "?": 0})
    check_vocabularies(base, same)
    swapped = tokenizer_in(tmp_path / "swapped", {"?": 0, "one": 2, "two": 1})
    longer = tokenizer_in(tmp_path / "longer", {"?": 0, "one": 1, "two": 2, "three": 3})
    (tmp_path / "bare").mkdir()
    for folder, words in (
        (swapped, "'one' is token 1 of the base, and token 2 of it"),
        (longer, "'three' is no token of the base, and token 3 of it"),
        (tmp_path / "bare", "has no tokenizer.json"),
    ):
        with pytest.raises(ConfigError, match=words) as refused:
            check_vocabularies(base, folder)
        assert refused.value.option == "--speculative-model"
