"""The other routes and the rarer fields: echo, best_of and suffix, responses, LoRAX's routes, tokens."""

import json
import random
from typing import Any

from soak.hostile.client import ask, undocumented_lorax
from soak.hostile.fields import COMPLETIONS, JUNK, SAMPLING, good, text_of
from soak.hostile.world import BASE, World

from lorafleet_contract.lorax import COMPATIBLE, GENERATE, GENERATE_STREAM
from lorafleet_inference.server.lorax_requests import REFUSED, LoraxParameters
from lorafleet_inference.server.responses_request import OF_CHATS, ResponsesRequest

RESPONSES, TOKENIZE, DETOKENIZE = "/v1/responses", "/tokenize", "/detokenize"
MAX_TOKENS = 300_000


async def rare(world: World, rng: random.Random) -> int:
    """Completions that show their prompt, choose the best of many, or fill a hole."""
    _, body = good(rng, world.some_model(rng), world.target.prompts)
    body.pop("messages", None)
    body.pop("top_logprobs", None)
    body |= {"prompt": text_of(rng, rng.choice((1, 10, 40, 90))), "logprobs": rng.choice((None, 0, 20))}
    for name, values in {
        "echo": (True, True, False, "yes"),
        "best_of": (1, 2, 20, 64, 128, 129, -1),
        "suffix": ("", " end", "x" * 100_000, 7),
        "max_tokens": (0, 1, 16, 1 << 40),
        "truncate_prompt_tokens": (-1, 1, 30, 0, 1 << 40),
        "prompt_logprobs": (0, 20, 21),
        "bad_words": (["e", " "], ["x" * 129], ["a"] * 129, [""]),
        "allowed_token_ids": ([5], [], list(range(419)), [420], [-1]),
        "cache_salt": ("a", "", "s" * 10_000),
        "priority": (0, -(1 << 31), 1 << 63, 1.5),
        "return_token_ids": (True,),
    }.items():
        if rng.random() < 0.3:
            body[name] = rng.choice(values)
    await world.public("rare", COMPLETIONS, json.dumps(body).encode())
    return 1


async def response(world: World, rng: random.Random) -> int:
    """A request of the Responses API, with strange items and fields."""
    text = text_of(rng, rng.choice((1, 10, 30)))
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": rng.choice(("{}", "{", "[" * 9000))}
    items: list[Any] = [
        {"role": rng.choice(("user", "system", "tool", "")), "content": rng.choice((text, [], None, 7))},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]},
        {"type": rng.choice(("item_reference", "", None, 7, ["a"])), "id": "x"},
        {"type": "function_call_output", "call_id": "c", "output": text},
        call,
    ]
    body: dict[str, Any] = {
        "model": world.some_model(rng),
        "input": text if rng.random() < 0.5 else rng.choices(items, k=rng.choice((1, 2, 5, 200))),
        "max_output_tokens": rng.choice((1, 16, 16, 64)),
        "stream": rng.random() < 0.5,
    }
    for _ in range(rng.choice((0, 0, 1, 3, 6))):
        name = rng.choice((*ResponsesRequest.model_fields, *sorted(OF_CHATS), "previous_response_id", "store"))
        body[name] = SAMPLING[name](rng) if name in SAMPLING and rng.random() < 0.5 else rng.choice(JUNK)(rng)
    await world.public("response", RESPONSES, _dumped(body))
    return 1


def _dumped(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body).encode()
    except RecursionError:
        return b'{"input":' + b"[" * 5000 + b"]" * 5000 + b"}"


LORAX: dict[str, tuple[Any, ...]] = {
    "do_sample": (True, False),
    "temperature": (0, 0.7, 100),
    "top_k": (1, 50),
    "top_p": (0.1, 1),
    "typical_p": (0.2, 0.99),
    "seed": (0, (1 << 64) - 1),
    "best_of": (1, 2, 20),
    "repetition_penalty": (0.01, 100),
    "max_new_tokens": (1, 16, 64),
    "stop": (["e"], []),
    "truncate": (1, 30),
    "return_full_text": (True,),
    "details": (True,),
    "decoder_input_details": (True,),
    "return_k_alternatives": (1, 20),
}


async def lorax(world: World, rng: random.Random) -> int:
    """A request of LoRAX's routes, with wild values in its fields."""
    model, parameters = world.some_model(rng), {}
    for _ in range(rng.choice((0, 1, 3, 8))):
        name = rng.choice((*LoraxParameters.model_fields, *LORAX, *LORAX, *REFUSED, "unheard_of"))
        parameters[name] = rng.choice(LORAX[name]) if name in LORAX and rng.random() < 0.7 else rng.choice(JUNK)(rng)
    parameters = {"max_new_tokens": 16, "adapter_id": None if model == BASE else model, **parameters}
    body: dict[str, Any] = {"inputs": text_of(rng, rng.choice((1, 10, 60))), "parameters": parameters}
    if rng.random() < 0.1:
        body |= {rng.choice(("inputs", "parameters", "stream", "x")): rng.choice(JUNK)(rng)}
    path = rng.choice((COMPATIBLE, GENERATE, GENERATE_STREAM))
    data = _dumped(body | ({"stream": rng.random() < 0.5} if path == COMPATIBLE else {}))
    answer = await ask(world.session, f"{world.url}{path}", data)
    world.note("lorax", answer, undocumented_lorax(answer), f"POST {path} {data[:600]!r} ({len(data)} bytes)")
    return 1


async def tokens(world: World, rng: random.Random) -> int:
    """Long texts to tokens and long lists of tokens to text, and what is no such list."""
    async with world.long_texts:
        body: dict[str, Any] = {"model": world.some_model(rng)}
        if rng.random() < 0.5:
            path, number = DETOKENIZE, int(10 ** rng.uniform(0, 5.5))
            ids = rng.choice(([rng.randrange(420)] * number, [rng.randrange(419) for _ in range(min(number, 20_000))]))
            body["tokens"] = rng.choice((ids, ids, ids, [-1] * number, [1 << 40], rng.choice(JUNK)(rng)))
        else:
            path, unit = TOKENIZE, rng.choice(("x", " ", "one two ", "一", "😀", "<s>", "a."))
            text = unit * int(10 ** rng.uniform(0, 6) / len(unit))
            body |= rng.choice(
                (
                    {"prompt": text, "return_token_strs": rng.random() < 0.5},
                    {"messages": [{"role": "user", "content": text}]},
                    {"prompt": text, "truncate_prompt_tokens": rng.choice((-1, 1, 100, 0))},
                    {"inputs": text},
                    {"prompt": rng.choice(JUNK)(rng)},
                )
            )
            if "inputs" in body:
                answer = await ask(world.session, f"{world.url}{path}", json.dumps({"inputs": text}).encode())
                world.note(
                    "tokens", answer, undocumented_lorax(answer), f"POST {path} inputs of {len(text)} characters"
                )
                return 1
        await world.public("tokens", path, _dumped(body))
    return 1
