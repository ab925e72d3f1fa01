"""Bodies of requests: good ones of every shape, and ones with fields as nobody would send them."""

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from lorafleet_inference.server.fields import NEUTRAL, PASSED
from lorafleet_inference.server.requests import ChatRequest, CompletionRequest

Maker = Callable[[random.Random], Any]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HONOURED = {CHAT: tuple(ChatRequest.model_fields), COMPLETIONS: tuple(CompletionRequest.model_fields)}
LINE = "one two three four five six seven eight nine ten hundred thousand The quick brown fox Zażółć 一二三 😀 👩‍👩‍👧"
WORDS = LINE.split()
SAMPLING: Mapping[str, Maker] = {
    "temperature": lambda rng: rng.choice([0, 0.0, 1e-9, 0.3, 1, 1.7, 2]),
    "top_p": lambda rng: rng.choice([0, 1e-9, 0.1, 0.9, 1]),
    "top_k": lambda rng: rng.choice([-1, 0, 1, 5, 50, (1 << 31) - 1]),
    "min_p": lambda rng: rng.choice([0, 1e-9, 0.1, 1]),
    "typical_p": lambda rng: rng.choice([1e-9, 0.2, 0.95, 1]),
    "repetition_penalty": lambda rng: rng.choice([0.01, 0.5, 1, 1.3, 100]),
    "presence_penalty": lambda rng: rng.uniform(-2, 2),
    "frequency_penalty": lambda rng: rng.uniform(-2, 2),
    "logit_bias": lambda rng: {
        str(rng.randrange(300)): rng.choice([-100, -1.5, 0, 100]) for _ in range(rng.randrange(20))
    },
    "seed": lambda rng: rng.choice([0, 1, -1, -2, rng.getrandbits(62), (1 << 63) - 1, -(1 << 63)]),
    "stop": lambda rng: rng.choice(["e", "\n", ["x", "yy", "一"], "never to be seen" * 20, []]),
    "stop_token_ids": lambda rng: [rng.randrange(300) for _ in range(rng.randrange(4))],
    "ignore_eos": lambda rng: rng.random() < 0.5,
    "num_speculative_tokens": lambda rng: 0,
    "min_tokens": lambda rng: rng.choice([0, 1, 8, 1 << 40]),
    "user": lambda rng: "somebody",
    "metadata": lambda rng: {"a": [1, {"b": None}]},
}
"""Values that are legal, at their edges too."""


def text_of(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=num_words))


def good(rng: random.Random, model: str, prompts: list[str]) -> tuple[str, dict[str, Any]]:
    """Return a path and a body that has to be answered, with legal fields at random."""
    path = rng.choice((CHAT, COMPLETIONS))
    text = rng.choice(prompts) if rng.random() < 0.5 else text_of(rng, rng.choice((1, 3, 10, 25)))
    body: dict[str, Any] = {"model": model, "max_tokens": rng.choice((1, 4, 16, 16, 32, 64))}
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": text}]
        if rng.random() < 0.2:
            body |= {"logprobs": True, "top_logprobs": rng.randrange(21)}
    else:
        body["prompt"] = rng.choice([text, text, [text, text_of(rng, 2)], [rng.randrange(300) for _ in range(9)]])
        if rng.random() < 0.2:
            body["logprobs"] = rng.randrange(21)
    for name in rng.sample(list(SAMPLING), k=rng.choice((0, 0, 1, 3, 8))):
        body[name] = SAMPLING[name](rng)
    if rng.random() < 0.1:
        body["n"] = rng.choice((2, 3, 8, 40))
    if rng.random() < 0.5:
        body["stream"] = True
        if rng.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
    elif rng.random() < 0.1:
        body["prompt_logprobs"] = rng.randrange(21)
    return path, body


JUNK: tuple[Maker, ...] = (
    lambda rng: None,
    lambda rng: rng.choice([True, False]),
    lambda rng: rng.choice([0, -1, 1, 2, 1 << 31, 1 << 63, -(1 << 63), 1 << 64, 10**30]),
    lambda rng: rng.choice([0.0, -0.0, 0.5, 1e-320, 5e-324, 1e308, -1e308, 1.5]),
    lambda rng: rng.choice(["", " ", "0", "none", "auto", "\x00", "\ud800", "\uffff", "😀" * 99, "<s>", "null"]),
    lambda rng: "x" * rng.choice([1, 1000, 100_000]),
    lambda rng: rng.choice([[], {}, [[]], [{}], [None], [""], [[1], ["a"]], {"": {}}, {"type": "text"}]),
    lambda rng: [rng.choice([0, 1, -1, 299, 300, 419, 420, 421, 1 << 40]) for _ in range(rng.choice([1, 3, 500]))],
    lambda rng: [text_of(rng, 2) for _ in range(rng.choice([1, 17, 300]))],
    lambda rng: {str(rng.choice([0, 1, 419, 420, -1, "a", "01", 10**12])): rng.choice([0, 1e308, -100, None, "x"])},
    lambda rng: [{"role": rng.choice(["user", "tool", "system", "", 7]), "content": rng.choice(["a", [], None, 3])}],
    lambda rng: [{"role": "user", "content": [{"type": rng.choice(["text", "image_url", ""]), "text": "a" * 50}]}],
    lambda rng: nested(rng.choice([3, 100, 5000])),
)
RAW = (b"NaN", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"0.0" + b"1" * 5000, b'"\\ud83d"', b"tru", b"[,]", b"")
"""What json.dumps would not write."""


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def strange(rng: random.Random, model: str, prompts: list[str]) -> tuple[str, bytes]:
    """Return a path and a body of which some fields are as nobody would send them."""
    path, body = good(rng, model, prompts)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        name = rng.choice([*HONOURED[path], *HONOURED[path], *PASSED, *NEUTRAL, "unheard_of", "Temperature", ""])
        if rng.random() < 0.2:
            body.pop(name, None)
        elif name in SAMPLING and rng.random() < 0.3:
            body[name] = SAMPLING[name](rng)
        else:
            body[name] = rng.choice(JUNK)(rng)
    data = _dumped(body)
    if rng.random() < 0.25:
        data = _mangled(rng, data, [*HONOURED[path], *NEUTRAL])
    return path, data


def _dumped(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body).encode()
    except RecursionError:  # too deep for the one who writes it
        return b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}"


def _mangled(rng: random.Random, data: bytes, names: list[str]) -> bytes:
    """Break the JSON itself."""
    how = rng.randrange(7)
    if how == 0:
        return data[: rng.randrange(len(data))]
    if how == 1:
        place = rng.randrange(len(data))
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if how == 2:
        return data[:-1] + b', "' + rng.choice(names).encode() + b'": ' + rng.choice(RAW) + b"}"
    if how == 3:
        return b"\xef\xbb\xbf" + data
    if how == 4:
        return data.decode().encode(rng.choice(["utf-16", "utf-32"]))
    if how == 5:
        return rng.choice([b"", b"[]", b"null", b"7", b'"text"', b"{}", b"[" * 200_000, b'{"a":' * 50_000])
    return data + rng.choice([b"{}", b"\x00", b" " * 100_000, b"//"])
