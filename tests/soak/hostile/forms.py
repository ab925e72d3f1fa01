"""Requests for answers of a form, and with tools, whose schemas, patterns and grammars are somebody else's programs."""

import json
import random
from collections.abc import Callable
from typing import Any

from soak.hostile.fields import CHAT, COMPLETIONS, nested, text_of
from soak.hostile.world import TOOLED, World

Maker = Callable[[random.Random], Any]


def _deep_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _all_of(depth: int) -> dict[str, Any]:
    """Twice as many branches for each level."""
    schema: dict[str, Any] = {"type": "object", "properties": {"end": {"type": "integer"}}}
    for level in range(depth):
        both = [{"properties": {f"{side}{level}": {"type": "string"}}, **schema} for side in "ab"]
        schema = {"anyOf": both}
    return schema


def _properties(number: int) -> dict[str, Any]:
    named = {f"name-{place}": {"type": "string", "maxLength": 5} for place in range(number)}
    return {"type": "object", "properties": named, "required": list(named), "additionalProperties": False}


SCHEMAS: tuple[Maker, ...] = (
    lambda rng: _deep_schema(rng.choice((5, 60, 120, 400))),
    lambda rng: _all_of(rng.choice((3, 8, 12))),
    lambda rng: _properties(rng.choice((3, 300, 3000))),
    lambda rng: {"enum": [text_of(rng, 3) for _ in range(rng.choice((2, 400, 4000)))]},
    lambda rng: {
        "type": "array",
        "items": {"type": "integer"},
        "minItems": rng.choice((1, 10**6, 10**12, -1, 1 << 70)),
    },
    lambda rng: {"type": "string", "minLength": rng.choice((1, 10**6, 10**18)), "maxLength": rng.choice((1, 10**6))},
    lambda rng: {"type": "string", "pattern": rng.choice(PATTERNS)},
    lambda rng: {"type": "number", "minimum": 1e308, "maximum": rng.choice((-1e308, 1e309)), "multipleOf": 1e-300},
    lambda rng: {"type": "integer", "minimum": 10 ** rng.choice((2, 30, 300)), "multipleOf": rng.choice((3, 7**60))},
    lambda rng: {"$ref": rng.choice(("#", "#/$defs/a", "#/$defs/none", "http://127.0.0.1:1/a", "file:///etc/passwd"))},
    lambda rng: {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "array", "items": {"$ref": "#/$defs/a"}}]}},
    },
    lambda rng: {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    lambda rng: {
        "allOf": [{"type": "object", "properties": {f"a{n}": {"type": "string"}}} for n in range(rng.choice((2, 200)))]
    },
    lambda rng: {"oneOf": [{"type": "string"}, {"type": "string", "pattern": "a+"}]},
    lambda rng: {"not": {"type": "string"}},
    lambda rng: {"type": "object", "patternProperties": {rng.choice(PATTERNS): {"type": "integer"}}},
    lambda rng: {"type": rng.choice(("nothing", 7, [], ["string", "null"], nested(90)))},
    lambda rng: {"type": "string", "format": rng.choice(("email", "date-time", "uuid", "regex", "uri-template", "x"))},
    lambda rng: {"x-guidance": {"lenient": True, "whitespace_pattern": rng.choice(PATTERNS)}, "type": "object"},
    lambda rng: {"const": rng.choice((nested(60), "x" * 100_000, 1e-320, None, "\ud83d"))},
    lambda rng: rng.choice((True, False, {}, {"a" * 100_000: 1}, {"properties": 7}, {"enum": []}, {"required": "a"})),
)
"""Of JSON documents: deep, wide, recursive, empty, contradictory, and ones that no answer ends."""
PATTERNS = (
    "[a-z]{3}",
    "(a+)+$",
    "(a|a)*b",
    "(a|aa)+c",
    "(.*)*x",
    ".*.*.*.*.*.*.*.*y",
    "(x{1,1000}){1,1000}",
    "((((a{10}){10}){10}){10}){10}",
    "a{0,1000000000}",
    "(?:a?){60}a{60}",
    r"(\w+\s?)*z",
    r"[\p{L}\p{N}]{400}",
    r"(?i)" + "(straße|ſ|K)" * 200,
    ".*" + "|".join(f"{number:03}" for number in range(300)),
    "(" * 200 + "a" + ")" * 200,
    "(" * 5000,
    "(?=a)b",
    r"(a)\1",
    "",
    "^$",
    "[^\\x00-\\x{10FFFF}]",
    "\x00",
    "x" * 30_000,
)
GRAMMARS = (
    'start: "a" start',
    'start: start "a" | "a"',
    'start: start start | "a"',
    'start: start start start | start start | "a" | ""',
    'start: ""',
    "start: start",
    "start: a\na: b\nb: a",
    "start: /(a|a)*/ start | /.*/",
    'start: ("a" | "a" "a")* "b"',
    'start: a{1,100000}\na: "x"',
    "start: " + " ".join(["x"] * 2000) + '\nx: "a"?',
    "\n".join([f'r{n}: r{n + 1} r{n + 1} | "a"' for n in range(200)] + ['r200: "a"', "start: r0"]),
    "start: " + "(" * 400 + '"a"' + ")" * 400,
    'start: %json {"type": "object"}',
    "start: %regex { nothing }",
    "%import common.WS\nstart: WS",
    '%ignore /.*/\nstart: "a"',
    '%llguidance {"no_forcing": true}\nstart: /a+/',
    "start: <|nobody|>",
    "start: <[300-100000]>",
    'root ::= "a" root',
    'root ::= root "b" | "a"',
    "root ::= " + "(" * 300 + '"a"' + ")" * 300,
    "root ::= " + " | ".join(f'"{number}"' for number in range(900)),
    "root ::= [^\\x00]* root | root",
    "root ::=",
    "{" * 3000,
    "start: " + '"' * 1000,
    "x" * 40_000,
    "\n" * 30_000,
    "root::=a0\n" + "".join(f"a{number}::=a{number + 1}\n" for number in range(600)) + 'a600::="x"',
)
"""In Lark's notation and in GBNF's: ambiguous, left-recursive, without end, exponential, malformed."""


async def form(world: World, rng: random.Random) -> int:
    """An answer of a form, in one of the ways to ask for it."""
    path = rng.choice((CHAT, COMPLETIONS))
    body: dict[str, Any] = {"model": world.some_model(rng), "max_tokens": rng.choice((1, 16, 64)), **_form(rng)}
    if rng.random() < 0.3:
        body |= rng.choice(
            ({"n": 4}, {"logprobs": 5} if path == COMPLETIONS else {"logprobs": True}, {"min_tokens": 30})
        )
    if rng.random() < 0.4:
        body["stream"] = True
    text = rng.choice(world.target.prompts)
    body |= (
        {"prompt": rng.choice((text, text, [text] * 100))}
        if path == COMPLETIONS
        else {"messages": [{"role": "user", "content": text}]}
    )
    await world.public("form", path, json.dumps(body).encode())
    return 1


def _form(rng: random.Random) -> dict[str, Any]:
    schema, pattern, grammar = rng.choice(SCHEMAS)(rng), rng.choice(PATTERNS), rng.choice(GRAMMARS)
    choice = rng.choice(([text_of(rng, 2) for _ in range(rng.choice((0, 1, 5, 1000, 2000)))], [7] * 100_000))
    return rng.choice(
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
            {"response_format": {"type": "json_object", "schema": schema}},
            {"guided_json": rng.choice((schema, json.dumps(schema), "{", "[" * 100_000))},
            {"structured_outputs": {"json": schema, "whitespace_pattern": pattern}},
            {"structured_outputs": {"regex": pattern}},
            {"structured_outputs": {"grammar": grammar}},
            {"guided_regex": pattern},
            {"guided_grammar": grammar},
            {"guided_choice": choice},
        )
    )


async def tool(world: World, rng: random.Random) -> int:
    """A chat with up to 128 tools, some of which have to be called."""
    number = rng.choice((1, 3, 128, 129))
    tools = [
        {
            "type": "function",
            "function": {
                "name": rng.choice((f"tool-{place}", f"tool-{place}", f"tool-{place}", "x" * 65, "tool-0")),
                "description": text_of(rng, rng.choice((1, 40))),
                "parameters": rng.choice(SCHEMAS)(rng) if place < 3 else {"type": "object"},
                "strict": rng.random() < 0.3,
            },
        }
        for place in range(number)
    ]
    named = {"type": "function", "function": {"name": rng.choice(("tool-0", "tool-0", "nobody"))}}
    body = {
        "model": rng.choice((TOOLED, TOOLED, TOOLED, world.some_model(rng))),
        "max_tokens": rng.choice((8, 64)),
        "messages": [{"role": "user", "content": text_of(rng, 3)}, *_calls(rng)],
        "tools": tools,
        "tool_choice": rng.choice(("auto", "required", "none", named, named)),
        "parallel_tool_calls": rng.random() < 0.5,
        "stream": rng.random() < 0.5,
    }
    await world.public("tool", CHAT, json.dumps(body).encode())
    return 1


def _calls(rng: random.Random) -> list[dict[str, Any]]:
    """Earlier calls, now and then."""
    if rng.random() < 0.6:
        return []
    arguments = rng.choice(('{"a": 1}', "{", "[" * 50_000, '{"a": 1e999}', "7", json.dumps({"a": nested(80)})))
    call = {"id": "c", "type": "function", "function": {"name": "tool-0", "arguments": arguments}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call] * rng.choice((1, 50))},
        {"role": "tool", "tool_call_id": "c", "content": text_of(rng, 3)},
    ]
