"""An activated adapter (aLoRA) from its folder to the answers of each route: the base's prefix is not computed again."""

import json

import httpx
import pytest
from openai import OpenAI
from support.admin import Refused
from support.declared_pod import DeclaredPod

from lorafleet_contract.routes import Routes

CONTEXT = [5 + 3 * number % 40 for number in range(64)]
"""Four blocks."""
INVOCATION = [7, 4, 4]


def activated(declared: DeclaredPod, name: str, **config: object) -> None:
    folder = declared.adapter(declared.volume, name)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "alora_invocation_tokens": INVOCATION, **config}))
    declared.admin.put(name, "volume", name)


def ask(client: OpenAI, model: str, prompt: list[int]) -> tuple[str, int]:
    """Return the answer, and how many tokens of the prompt were not computed."""
    extra = {"ignore_eos": True}
    answer = client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0, extra_body=extra)
    assert answer.usage is not None
    details = answer.usage.prompt_tokens_details
    return answer.choices[0].text, (details.cached_tokens if details is not None else 0) or 0


def test_it_goes_on_from_the_bases_prefix(declared: DeclaredPod) -> None:
    activated(declared, "checker")
    invoked = [*CONTEXT, *INVOCATION, 9]
    with declared.pod.openai() as client:
        of_base, _ = ask(client, "tiny", invoked)
        assert ask(client, "tiny", invoked) == (of_base, 64)
        of_adapter, num_cached = ask(client, "checker", invoked)
        assert num_cached == 64
        assert of_adapter != of_base
        assert ask(client, "checker", [*CONTEXT, 9]) == ask(client, "tiny", [*CONTEXT, 9])
        raw = {"model": "checker", "prompt": invoked, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        with httpx.stream("POST", f"{declared.pod.url}/v1/completions", json={**raw, "stream": True}) as stream:
            parts = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    assert "".join(part["choices"][0]["text"] for part in parts if part["choices"]) == of_adapter


def test_who_asks_for_models_or_routes_sees_its_invocation(declared: DeclaredPod) -> None:
    activated(declared, "shown")
    routes = Routes.model_validate(httpx.get(f"{declared.pod.url}/v1/routes").json())
    facts = next(one.facts for one in routes.adapters or () if one.name == "shown")
    assert facts is not None
    assert facts.invocation_tokens == INVOCATION
    assert declared.admin.resolve("volume", "shown").facts.invocation_tokens == INVOCATION
    for name, tokens in (("shown", INVOCATION), ("tiny", None)):
        assert httpx.get(f"{declared.pod.url}/v1/models/{name}").json()["invocation_tokens"] == tokens


def test_one_that_peft_would_not_activate_is_refused(declared: DeclaredPod) -> None:
    with pytest.raises(Refused) as refused:
        activated(declared, "untold", task_type=None)
    assert "alora_invocation_tokens" in refused.value.message
