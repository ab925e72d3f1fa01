"""Calls of tools are found in what models write, however the text is cut, and grammars force what the parsers read."""

import json
import time
from typing import Any

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers_made import byte_level

from lorafleet_inference.engine.grammars import GrammarTokenizer
from lorafleet_inference.text.tool_calls import NOTATIONS, Tool, notation_of
from lorafleet_inference.text.tool_calls.parts import Argued, Called, Part, Said

TOKENIZER = byte_level()
TRIE = GrammarTokenizer(TOKENIZER).trie
WEATHER = '{"name": "weather", "arguments": {"city": "Köln \\"}{[\\\\", "days": [1, {"a": null}]}}'
ARGS = '{"city": "Köln \\"}{[\\\\", "days": [1, {"a": null}]}'
TIME = '{"name": "time", "arguments": {}}'
NESTED = f'<tool_call>{{"name": {"[" * 2000}{"]" * 2000}, "arguments": {{}}}}</tool_call>'
Calls = list[tuple[str, str]]

CASES: list[tuple[str, str, str, Calls]] = [
    ("hermes", "just text with < and <tool", "just text with < and <tool", []),
    ("hermes", f"<tool_call>\n{WEATHER}\n</tool_call>", "", [("weather", ARGS)]),
    (
        "hermes",
        f"I look.\n<tool_call>\n{WEATHER}\n</tool_call>\n<tool_call>{TIME}</tool_call>",
        "I look.\n",
        [("weather", ARGS), ("time", "{}")],
    ),
    ("hermes", f"<tool_call>{TIME}</tool_call> Done.", " Done.", [("time", "{}")]),
    ("hermes", f"<tool_call>{TIME}", "", [("time", "{}")]),
    ("hermes", "<tool_call>no JSON</tool_call>", "<tool_call>no JSON</tool_call>", []),
    ("hermes", NESTED, NESTED, []),
    ("hermes", '<tool_call>{"city": 1}</tool_call>', '<tool_call>{"city": 1}</tool_call>', []),
    ("hermes", '<tool_call>{"name": "time", "arguments": {"a": [1, ', "", [("time", '{"a": [1, ')]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "time"}</tool_call>', "", [("time", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("time", '{"a": 1}')]),
    ("hermes", '<tool_call>{"id": 3, "name": "time", "arguments": {}}</tool_call>', "", [("time", "{}")]),
    ("mistral", "text [TOOL", "text [TOOL", []),
    ("mistral", f"[TOOL_CALLS][{WEATHER}, {TIME}]", "", [("weather", ARGS), ("time", "{}")]),
    ("mistral", f"Hm. [TOOL_CALLS] [{TIME}]", "Hm. ", [("time", "{}")]),
    ("mistral", f"[TOOL_CALLS]weather[ARGS]{ARGS}", "", [("weather", ARGS)]),
    (
        "mistral",
        f"[TOOL_CALLS]weather[CALL_ID]abc123[ARGS]{ARGS}[TOOL_CALLS]time{{}}",
        "",
        [("weather", ARGS), ("time", "{}")],
    ),
    ("mistral", "[TOOL_CALLS]nothing", "[TOOL_CALLS]nothing", []),
    ("mistral", f"[TOOL_CALLS][]{TIME}", f"[TOOL_CALLS][]{TIME}", []),
    ("mistral", f"[TOOL_CALLS][{TIME}] {TIME}", "", [("time", "{}")]),
    ("hermes", f'<tool_call>{{"arguments": "a": 1}}{TIME}', f'<tool_call>{{"arguments": "a": 1}}{TIME}', []),
    ("llama", "The answer {is} 3", "The answer {is} 3", []),
    ("llama", '{"name": "time", "parameters": {"a": 1}}', "", [("time", '{"a": 1}')]),
    (
        "llama",
        '<|python_tag|>{"name": "time", "parameters": {}}; {"name": "b", "parameters": {"x": "y"}}',
        "",
        [("time", "{}"), ("b", '{"x": "y"}')],
    ),
    ("llama", '{"city": "no call"} at all', '{"city": "no call"} at all', []),
    ("llama", "  [1, 2]", "  [1, 2]", []),
    ("llama", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ("llama", "", "", []),
]


def read(parts: list[Part]) -> tuple[str, Calls]:
    text, names, arguments = "", [], []
    for part in parts:
        match part:
            case Said(some):
                assert some
                text += some
            case Called(index, name):
                assert index == len(names), "calls are numbered"
                names.append(name)
                arguments.append("")
            case Argued(index, some):
                arguments[index] += some
    return text, list(zip(names, arguments, strict=True))


def parse(notation: str, pieces: list[str]) -> tuple[str, Calls]:
    parser = NOTATIONS[notation].parser()
    parts = [part for piece in pieces for part in parser.push(piece)]
    return read(parts + parser.finish())


@pytest.mark.parametrize(("notation", "text", "said", "calls"), CASES)
def test_calls_are_found_in_the_whole_text_and_character_by_character(
    notation: str, text: str, said: str, calls: Calls
) -> None:
    assert parse(notation, [text]) == (said, calls)
    assert parse(notation, list(text)) == (said, calls)


@given(st.sampled_from(CASES), st.data())
def test_the_cuts_of_a_stream_change_nothing(case: tuple[str, str, str, Calls], data: st.DataObject) -> None:
    notation, text, said, calls = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(notation, pieces) == (said, calls)


FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
    '{"name": "a", ',
    "{",
    "}",
    "[",
    "]",
]
FRAGMENTS += ['"arguments": ', '"', ", ", ":", "\\", " ", "\n", "x", ";", '"parameters": {"b": 1}}']


@given(st.sampled_from(sorted(NOTATIONS)), st.lists(st.sampled_from(FRAGMENTS), max_size=20), st.data())
def test_any_text_is_read_to_its_end_whatever_the_cuts(notation: str, pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cut = data.draw(st.integers(0, len(text)))
    whole = parse(notation, [text])
    assert parse(notation, list(text)) == whole
    assert parse(notation, [text[:cut], text[cut:]]) == whole
    if not whole[1]:
        assert whole[0].strip() == text.strip(), "what is no call is text"


LONG = "x" * 500_000


@pytest.mark.parametrize(
    ("notation", "text"),
    [
        ("hermes", f'<tool_call>{{"name": "a", "arguments": {{"b": "{LONG}"}}}}</tool_call>'),
        ("hermes", f'<tool_call>{{"arguments": "{LONG}", "name": "a"}}</tool_call>'),
        ("hermes", f'<tool_call>{{"{LONG}": 1'),
        ("llama", f'{{"name": "a", "parameters": {{"b": [{"[1, ]," * 80_000}]}}}}'),
        ("llama", '{"name": "a", "parameters": ' + "1" * 500_000),
        ("mistral", f'[TOOL_CALLS]a[ARGS]{{"b": "{LONG}"}}'),
        ("mistral", f"[TOOL_CALLS]a{' ' * 20_000}"),
        ("mistral", f"[TOOL_CALLS]{LONG}"),
    ],
    ids=lambda value: value[:34],
)
def test_no_answer_is_too_long_to_be_read_at_once(notation: str, text: str) -> None:
    """It is read on the event loop: what took time as its square stopped everybody's streams for half a minute."""

    def cpu_seconds() -> float:
        began = time.process_time()
        parse(notation, [text])
        return time.process_time() - began

    assert any(cpu_seconds() < 0.5 for _ in range(3))


def test_a_head_of_a_call_that_never_ends_is_not_looked_through_with_each_token() -> None:
    began = time.process_time()
    said, calls = parse("mistral", ["[TOOL_CALLS]a", *[" " * 16] * 2000, "b"])
    assert time.process_time() - began < 2.0
    assert (said.split(), calls) == (["[TOOL_CALLS]a", "b"], [])


def test_notations_are_found_from_templates() -> None:
    assert notation_of("... <tool_call>\n{{ x }} ...") is NOTATIONS["hermes"]
    assert notation_of("{{ '[TOOL_CALLS]' }}") is NOTATIONS["mistral"]
    assert notation_of('{"name": function name, "parameters": dictionary} Environment: ipython') is NOTATIONS["llama"]
    assert notation_of("{{ messages }}") is None


TOOLS = [
    Tool(
        "weather",
        {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    ),
    Tool("time"),
]


def literal(text: str) -> str:
    return json.dumps(text)


def follows(lark: str, text: str) -> Any:
    matcher = llguidance.LLMatcher(TRIE, llguidance.LLMatcher.grammar_from_lark(lark), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    return all(matcher.consume_token(token) for token in token_ids) and matcher.is_accepting()


WRITTEN = {
    "hermes": ('<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>', "\n"),
    "llama": ('{"name": "%s", "parameters": %s}', ";"),
}


@pytest.mark.parametrize("notation", sorted(NOTATIONS))
@pytest.mark.parametrize("several", [True, False])
def test_what_a_grammar_forces_is_what_its_parser_reads(notation: str, several: bool) -> None:
    def written(*calls: tuple[str, str]) -> str:
        if notation == "mistral":
            body = ", ".join(f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in calls)
            return f"[TOOL_CALLS][{body}]"
        form, between = WRITTEN[notation]
        return between.join(form % call for call in calls)

    one, two = [("weather", '{"city": "Köln"}')], [("time", "{}"), ("weather", '{"city":"x"}')]
    must = NOTATIONS[notation].must_call(TOOLS, literal, several=several)
    may = NOTATIONS[notation].may_call(TOOLS, literal, several=several)
    for grammar in (must, may):
        assert follows(grammar, written(*one))
        assert follows(grammar, written(*two)) is several
        assert not follows(grammar, written(("other", "{}")))
        assert not follows(grammar, written(("weather", "{}")))
    assert not follows(must, "No.")
    assert follows(may, "No.")
    assert parse(notation, [written(*one)]) == ("", one)
    assert parse(notation, [written(*two)])[1] == two
