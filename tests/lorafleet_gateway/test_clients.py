"""OpenAI's client, LangChain, LiteLLM and lm_eval, unmodified, get what OpenAI's documents promise, from a pod and through the gateway."""

import asyncio
import json
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from peft import PeftModel
from support.client_programs import Outcome, check_answered, run_cases
from support.clients.lm_eval_data import PAIRS, QUESTIONS
from support.pod import ServedPod, serve
from support.tiny_llama import make_adapter, make_base
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedModel

from lorafleet_contract.names import LABEL_BASE, LABEL_ROLE
from lorafleet_contract.routes import Routes

from .conftest import NAMESPACE, eventually, new_world

pytestmark = pytest.mark.slow
TEMPLATE = (
    "{{ bos_token }}{% for tool in tools or [] %}{{ tool['function']['name'] }} {% endfor %}{# <tool_call>…</tool_call> #}"
    "{% for message in messages %}<|user|>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant:{% endif %}"
)
"""Knows tools; tells little of them, as the context is short."""
LANGCHAIN = "langchain_openai.chat_models.base"


@contextmanager
def gateway_before(pod: ServedPod) -> Iterator[str]:
    """Run a gateway in a thread of its own, since the clients are waited for; yield its URL."""
    opened, enough = Future[str](), threading.Event()

    async def run() -> None:
        async with new_world() as world:
            world.base("tiny")
            for adapter in Routes.model_validate_json(pod.get("/v1/routes").content).adapters or ():
                world.adapter(adapter.name, base="tiny", status={"stableRevision": adapter.revision})
            endpoint = {"addresses": ["127.0.0.1"], "conditions": {"ready": True}}
            endpoint["targetRef"] = {"kind": "Pod", "name": "pod", "uid": "pod"}
            world.kube.put(
                "endpointslices",
                NAMESPACE,
                "pod",
                labels={LABEL_BASE: "tiny", LABEL_ROLE: "pods"},
                addressType="IPv4",
                endpoints=[endpoint],
                ports=[{"name": "http", "port": urlsplit(pod.url).port}],
            )
            client = await world.open()
            await eventually("the gateway knows the pod", lambda: world.num_reachable("tiny") == 1)
            opened.set_result(str(client.base_url))
            await asyncio.to_thread(enough.wait)

    def main() -> None:
        try:
            asyncio.run(run())
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)

    thread = threading.Thread(target=main)
    thread.start()
    try:
        yield opened.result(60)
    finally:
        enough.set()
        thread.join()


@dataclass(frozen=True)
class Served:
    """URLs of the pod and of the gateway before it, and the folders of the base and of the adapter."""

    pod: str
    gateway: str
    tiny: Path
    red: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("clients")
    make_base(folder / "tiny")
    (folder / "tiny" / "chat_template.jinja").write_text(TEMPLATE)
    make_adapter(folder / "tiny", folder / "red", rank=4, seed=1)
    make_adapter(folder / "tiny", folder / "blue", rank=4, seed=2)
    adapters: dict[str, Path | str] = {"red": folder / "red", "team/blue": folder / "blue"}
    with serve(folder / "tiny", "--served-name=tiny", adapters=adapters) as pod, gateway_before(pod) as gateway:
        yield Served(pod.url, gateway, folder / "tiny", folder / "red")


def refused(outcomes: dict[str, Outcome], expected: dict[str, tuple[str, str]]) -> None:
    """Check that these cases, which are taken out, fail with the client's class and with what the message names."""
    for name, (error, named) in expected.items():
        outcome = outcomes.pop(name)
        assert outcome.error == error, (name, outcome)
        assert named in outcome.message, (name, outcome)


def check_openai(outcomes: dict[str, Outcome]) -> None:
    refused(
        outcomes,
        {
            "no_such_model": ("openai.NotFoundError", "no model 'nobody'"),
            "no_such_model_to_retrieve": ("openai.NotFoundError", "team/nobody"),
            "bad_value": ("openai.BadRequestError", "temperature"),
            "unknown_field": ("openai.BadRequestError", "temprature"),
            "too_long": ("openai.BadRequestError", "maximum context length is 256"),
            "image": ("openai.BadRequestError", "image_url"),
            "unenforceable": ("openai.BadRequestError", "uniqueItems"),
            "cut_before_it_parses": ("openai.LengthFinishReasonError", "length limit was reached"),
            "stored": ("openai.BadRequestError", "store"),
            "no_such_route": ("openai.NotFoundError", "moderations"),
        },
    )
    answers = check_answered(outcomes)
    plain = answers["chat"]
    assert plain["text"]
    assert (plain["finish"], plain["model"], plain["usage"][1]) == ("length", "red", 12)
    assert answers["async_chat"] == plain
    assert answers["chat_of_the_base"]["model"] == "tiny"
    assert answers["chat_of_the_base"]["text"] != plain["text"]
    assert answers["stream"] == {"text": plain["text"], "usages": [plain["usage"]], "is_streamed": True}
    assert answers["async_stream"] == plain["text"]
    assert len(set(answers["several_choices"])) == 3
    assert answers["several_choices_streamed"] == answers["several_choices"]
    assert [(own, num) for own, num, best in answers["logprobs"]] == [(best, 2) for *_, best in answers["logprobs"]]
    assert len(answers["logprobs"]) == 4
    stop = answers["stop"]
    assert (stop["cut"], stop["finish"]) == (stop["whole"].partition(stop["stop"])[0], "stop")
    events = answers["stream_of_events"]
    assert (events["text"], events["joined"], events["finish"]) == (stop["cut"], stop["cut"], "stop")
    assert events["usage"][0] == plain["usage"][0]
    assert answers["options"]["usage"][1] == 5
    assert answers["raw_response"] == {"status": 200, "id": "mine", "adapter": "red", "parsed": plain}
    assert answers["streaming_response"] == {"type": "text/event-stream", "last": "data: [DONE]", "many": True}

    check_openai_forms(answers)


def check_openai_forms(answers: dict[str, Any]) -> None:
    """Structured output, tools, and what is beside chat."""
    plain = answers["chat"]
    for name in ("parsed", "parsed_stream"):
        assert answers[name]["city"] in ("Rome", "Oslo"), name
        assert 1 <= answers[name]["days"] <= 9, name
    assert isinstance(json.loads(answers["json_object"]), dict)
    ((called, arguments),) = answers["tools_named"]["calls"]
    assert (called, set(json.loads(arguments))) == ("forecast", {"city"})
    assert answers["tools_parsed"]["city"] in ("Rome", "Oslo")
    assert answers["tools_streamed"]["calls"] == [["forecast", answers["tools_streamed"]["joined"]]]
    assert answers["tools_streamed"]["joined"] == arguments
    assert answers["tools_auto"]["text"] != plain["text"]
    assert answers["tools_round"]["text"]

    whole = answers["completion"]["whole"]
    assert whole == answers["completion"]["streamed"] == answers["completion"]["many"][0]
    assert len(answers["completion"]["many"]) == 2
    echo = answers["completion_echo"]
    assert (echo["text"], echo["first"]) == ("one two three", None)
    assert all(one < 0 for one in echo["rest"])
    assert echo["rest"]
    assert len(answers["completion_best_of"]) == 2
    response = answers["responses"]
    assert response["text"].startswith(plain["text"])
    assert (response["status"], response["usage"]) == ("incomplete", [plain["usage"][0], 16])
    assert answers["async_responses"] == response
    streamed = {**response, "joined": response["text"], "last": "response.incomplete", "is_streamed": True}
    assert answers["responses_streamed"] == streamed
    ((called, arguments),) = answers["responses_tools"]
    assert (called, set(json.loads(arguments))) == ("forecast", {"city"})
    vectors = answers["embeddings"]
    assert (vectors["lengths"], vectors["alike"], vectors["fewer"]) == ([1.0] * 2, True, 5)
    assert vectors["tokens"] > 2
    assert answers["models"] == ["red", "team/blue", "tiny"]
    assert answers["model_with_a_slash"] == {"model": "team/blue", "answer": "team/blue"}


def check_langchain(outcomes: dict[str, Outcome]) -> None:
    refused(
        outcomes,
        {
            "no_such_model": (f"{LANGCHAIN}.OpenAIModelNotFoundError", "no model 'nobody'"),
            "too_long": (f"{LANGCHAIN}.OpenAIContextOverflowError", "maximum context length is 256"),
            "image": (f"{LANGCHAIN}.OpenAIInvalidRequestError", "image_url"),
            "schema_that_cannot_be_enforced": (f"{LANGCHAIN}.OpenAIInvalidRequestError", "uniqueItems"),
            "stored": (f"{LANGCHAIN}.OpenAIInvalidRequestError", "store"),
        },
    )
    answers = check_answered(outcomes)
    plain = answers["invoke"]
    assert plain["text"]
    assert (plain["finish"], plain["model"], plain["usage"][1]) == ("length", "red", 12)
    for name in ("stream", "astream", "ainvoke"):
        assert {key: answers[name][key] for key in plain} == plain, name
    assert answers["stream"]["is_streamed"]
    assert answers["batch"][1] == plain
    assert answers["invoke_base"]["model"] == "tiny"
    assert answers["invoke_base"]["text"] != answers["batch"][0]["text"]
    assert answers["parts"]["text"] == answers["batch"][0]["text"]
    assert len(set(answers["several_choices"])) == 3
    assert answers["options"]["usage"][1] == 12
    assert answers["logprobs"] == [2] * 4
    assert answers["stop"]["cut"] == answers["stop"]["whole"].partition(answers["stop"]["stop"])[0]

    for name in sorted(answers):
        if name.startswith(("structured_json_schema", "structured_function_calling", "responses_structured")):
            answer = answers[name]["parsed"] if name.endswith("with_raw") else answers[name]
            if "dict" in name or name.endswith("streamed"):
                assert answer["mood"] in ("good", "bad"), name
            else:
                assert answer["city"] in ("Rome", "Oslo"), name
                assert 1 <= answer["days"] <= 9, name
    assert answers["structured_json_schema_with_raw"]["error"] is None
    assert answers["structured_json_mode"] == {"city": None}
    assert answers["structured_json_mode_of_no_schema"] == {}

    for name in (
        "tools_any",
        "tools_named",
        "tools_named_strict",
        "tools_not_parallel",
        "tools_streamed",
        "responses_tools",
    ):
        (call, *more) = answers[name]["calls"]
        assert call["id"], name
        assert call["name"] in (("forecast", "now") if name in ("tools_any", "tools_not_parallel") else ("forecast",))
        if call["name"] == "forecast":
            assert call["args"]["city"] in ("Rome", "Oslo"), name
            assert 1 <= call["args"]["days"] <= 9, name
        assert not more or name == "tools_any"
    assert answers["tools_streamed"]["is_streamed"]
    assert answers["tools_named"]["calls"][0]["args"] == answers["tools_streamed"]["calls"][0]["args"]
    assert answers["tools_auto"]["text"] != answers["tools_none"]["text"] == plain["text"]
    assert "days of sun" in answers["tools_round"]["says"]
    assert answers["tools_round"]["answer"]["text"]
    assert answers["responses_tools_round"]["text"]

    assert answers["completion"]["whole"] == answers["completion"]["streamed"] == answers["completion"]["many"][0]
    assert len(answers["completion_best_of"]) == 2
    assert answers["embeddings"] == {"lengths": [1.0] * 3, "alike": True, "query": True, "differ": True}
    assert answers["embeddings_of_fewer_dimensions"] == 5
    assert answers["responses"]["text"].startswith(plain["text"])
    assert answers["responses"]["usage"] == [plain["usage"][0], 16]
    assert answers["responses_streamed"]["text"] == answers["responses"]["text"]
    assert answers["responses_streamed"]["is_streamed"]


def check_litellm(outcomes: dict[str, Outcome]) -> None:
    refused(
        outcomes,
        {
            "no_such_model": ("litellm.exceptions.NotFoundError", "no model 'nobody'"),
            "too_long": ("litellm.exceptions.ContextWindowExceededError", "maximum context length is 256"),
            "bad_value": ("litellm.exceptions.BadRequestError", "temperature"),
            "unenforceable": ("litellm.exceptions.BadRequestError", "uniqueItems"),
        },
    )
    answers = check_answered(outcomes)
    plain = answers["chat"]
    assert plain["text"]
    assert (plain["finish"], plain["model"], plain["usage"][1]) == ("length", "red", 12)
    assert {key: answers["stream"][key] for key in plain} == plain
    assert answers["stream"]["is_streamed"]
    assert answers["achat"] == plain
    assert answers["astream"] == plain["text"]
    assert answers["reasoning_effort"] == plain
    assert len(set(answers["several_choices"])) == 3
    assert answers["logprobs"] == [2] * 12
    assert answers["stop"]["cut"] == answers["stop"]["whole"].partition(answers["stop"]["stop"])[0]
    assert answers["options"]["usage"][1] == answers["own_fields"]["usage"][1] == 12
    assert answers["max_completion_tokens"]["usage"][1] == 5
    assert answers["choice"]["text"] in ("yes", "no")
    for name in ("structured", "structured_stream"):
        assert '"days"' in answers[name]["text"]
        assert answers[name]["finish"] == "stop"
    for name in ("tools_named", "tools_required", "tools_streamed"):
        ((called, arguments),) = answers[name]["calls"]
        assert called == "forecast"
        assert '"city"' in arguments
    assert answers["tools_auto"]["text"] != plain["text"]
    assert answers["tools_round"]["text"]
    assert answers["text"]["whole"] == answers["text"]["streamed"]
    assert answers["responses"][0].startswith(plain["text"])
    assert (len(set(answers["embedding"]["sizes"])), answers["embedding"]["model"]) == (1, "red")
    assert answers["embedding"]["tokens"] > 2


def check_hosted(outcomes: dict[str, Outcome], plain: object) -> None:
    """What LiteLLM makes ready otherwise for `hosted_vllm/`; `plain` is what `openai/` was answered."""
    refused(
        outcomes,
        {
            "no_such_model": ("litellm.exceptions.NotFoundError", "no model 'nobody'"),
            "too_long": ("litellm.exceptions.ContextWindowExceededError", "maximum context length is 256"),
        },
    )
    answers = check_answered(outcomes)
    assert answers["chat"] == answers["reasoning_effort"] == plain
    assert answers["stream"] == {**answers["chat"], "is_streamed": True}
    assert answers["choice"]["text"] in ("yes", "no")
    assert '"days"' in answers["structured"]["text"]
    assert [name for name, _ in answers["tools_named"]["calls"]] == ["forecast"]
    assert answers["tools_round"]["text"]
    assert answers["embedding"]["model"] == "red"


def through_both(client: str, served: Served, *passed: str, **variables: str) -> dict[str, Outcome]:
    """Run all cases at the pod, and some through the gateway, where the same has to come of them; return the pod's outcomes."""
    found = run_cases(client, {"pod": (served.pod, ()), "gateway": (served.gateway, passed)}, variables)
    for name, outcome in found["gateway"].items():
        at_pod = found["pod"][name]
        assert (outcome.answer, outcome.error) == (at_pod.answer, at_pod.error), (name, outcome.traceback)
    return found["pod"]


def test_openai(served: Served) -> None:
    plain = ("chat", "async_chat", "stream", "stream_of_events", "several_choices_streamed", "raw_response")
    more = ("streaming_response", "parsed", "tools_streamed", "completion", "responses", "responses_streamed")
    names = ("models", "model_with_a_slash", "no_such_model", "no_such_model_to_retrieve")
    errors = ("unknown_field", "too_long", "cut_before_it_parses", "stored", "no_such_route")
    check_openai(through_both("openai", served, *plain, *more, *names, *errors))


def test_langchain(served: Served) -> None:
    plain = (
        "invoke",
        "stream",
        "ainvoke",
        "astream",
        "several_choices",
        "completion",
        "no_such_model",
        "too_long",
        "stored",
    )
    structured = ("structured_json_schema", "structured_function_calling", "structured_json_mode")
    more = ("tools_streamed", "tools_round", "responses", "responses_streamed", "responses_tools", "embeddings")
    check_langchain(through_both("langchain", served, *plain, *structured, *more))


def test_litellm(served: Served) -> None:
    plain = (
        "openai_chat",
        "hosted_vllm_stream",
        "openai_achat",
        "openai_text",
        "hosted_vllm_choice",
        "openai_too_long",
    )
    more = (
        "openai_structured",
        "openai_tools_streamed",
        "hosted_vllm_tools_round",
        "openai_responses",
        "openai_embedding",
    )
    outcomes = through_both("litellm", served, *plain, *more, "hosted_vllm_no_such_model")
    own = {name.removeprefix("openai_"): one for name, one in outcomes.items() if name.startswith("openai_")}
    hosted = {
        name.removeprefix("hosted_vllm_"): one for name, one in outcomes.items() if name.startswith("hosted_vllm_")
    }
    check_hosted(hosted, own["chat"].answer)
    check_litellm(own)


def likelihood(model: PreTrainedModel, context: list[int], rest: list[int]) -> tuple[float, bool]:
    """What the model itself thinks of tokens after others, and whether it would choose them."""
    with torch.inference_mode():
        table = model(torch.tensor([context + rest])).logits[0, len(context) - 1 : -1].log_softmax(-1)
    of_rest = table.gather(1, torch.tensor(rest)[:, None])[:, 0]
    return float(of_rest.sum()), table.argmax(-1).tolist() == rest


def test_lm_eval(served: Served, tmp_path: Path) -> None:
    """Likelihoods are those that transformers and PEFT compute, so scores of tasks are those of its `hf`."""
    variables = {"LORAFLEET_TEST_TOKENIZER": str(served.tiny), "HF_HOME": str(tmp_path)}
    outcomes = through_both("lm_eval", served, "loglikelihood_of_an_adapter", "a_task", **variables)
    refused(outcomes, {"no_such_model": ("requests.exceptions.HTTPError", "404")})
    answers = check_answered(outcomes)

    tokenizer = Tokenizer.from_file(str(served.tiny / "tokenizer.json"))

    def split(context: str, rest: str) -> tuple[list[int], list[int]]:
        """As lm_eval does: what is asked for after the tokens of the context alone."""
        if not context:
            return [tokenizer.token_to_id("<s>")], tokenizer.encode(rest, add_special_tokens=False).ids
        whole = tokenizer.encode(context + rest, add_special_tokens=False).ids
        begin = len(tokenizer.encode(context, add_special_tokens=False).ids)
        return whole[:begin], whole[begin:]

    models: dict[str, PreTrainedModel] = {"base": LlamaForCausalLM.from_pretrained(served.tiny).eval()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is being renamed
        models["adapter"] = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(served.tiny), served.red)
    expected = {name: [likelihood(model, *split(*pair)) for pair in PAIRS] for name, model in models.items()}
    of_cases = {"of_the_base": "base", "of_an_adapter": "adapter", "in_batches": "adapter", "at_once": "adapter"}
    for name, by in of_cases.items():
        got = answers[f"loglikelihood_{name}"]
        assert [one for one, _ in got] == pytest.approx([one for one, _ in expected[by]], abs=1e-3), name
        assert [greedy for _, greedy in got] == [greedy for _, greedy in expected[by]], name
    assert answers["generate_until"][0]

    chosen = []
    for question, told in zip(QUESTIONS, answers["a_task"]["likelihoods"], strict=True):
        own = [
            likelihood(models["adapter"], *split(question["question"], f" {choice}"))[0]
            for choice in question["choices"]
        ]
        assert told == pytest.approx(own, abs=1e-3)
        chosen.append(own.index(max(own)) == question["answer"])
    assert answers["a_task"]["acc"] == pytest.approx(sum(chosen) / len(chosen))
