"""What clients ask of the form of answers becomes grammars that mean the same; what is no form is refused by name."""

from typing import Any

import hypothesis
import llguidance
import pytest
from hypothesis import strategies as st
from llguidance.gbnf_to_lark import is_lark_syntax
from pydantic import ValidationError
from support.tokenizers_made import byte_level

from lorafleet_inference.engine.grammars import GrammarTokenizer
from lorafleet_inference.server.structured import FormFields, ResponseFormat, StructuredOutputs, is_lark, of_schema

TOKENIZER = byte_level()
GRAMMARS = GrammarTokenizer(TOKENIZER)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def matches(grammar: str | None, text: str) -> bool:
    assert grammar is not None
    matcher = llguidance.LLMatcher(GRAMMARS.trie, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    return all(matcher.consume_token(token) for token in token_ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("given", "yes", "no"),
    [
        ({"type": "json_object"}, ['{"x": [1, null]}', "{}"], ["[]", '"a"', "{}x"]),
        ({"type": "json_object", "schema": SCHEMA}, ['{"a":1}', '{"a": -3}'], ["{}", '{"a":"b"}', '{"a":1,"b":2}']),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}, ['{"a":1}'], ["{}"]),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, ['{"a":1}'], ["{}"]),
        ({"type": "json_schema", "schema": SCHEMA}, ['{"a":1}'], ["{}"]),
    ],
)
def test_response_formats(given: Any, yes: list[str], no: list[str]) -> None:
    grammar = ResponseFormat.model_validate(given).grammar()
    assert [text for text in yes + no if matches(grammar, text)] == yes


def test_a_text_is_free() -> None:
    assert ResponseFormat.model_validate({"type": "text"}).grammar() is None
    for given in ({}, {"response_format": {"type": "text"}}):
        fields = FormFields.model_validate(given)
        assert fields.form_field is None
        assert fields.grammar is None


@pytest.mark.parametrize(
    ("given", "yes", "no"),
    [
        ({"json": SCHEMA}, ['{"a":1}', '{"a": 1}', '{\n "a":1}'], ["{}", '{"a":' + " " * 30 + "1}"]),
        ({"json": '{"enum": [1, "x"]}'}, ["1", '"x"'], ["2", "x"]),
        ({"json": SCHEMA, "disable_any_whitespace": True}, ['{"a":1}'], ['{"a": 1}']),
        ({"json": SCHEMA, "whitespace_pattern": " "}, ['{"a":1}', '{"a": 1}'], ['{"a":\n1}']),
        ({"json_object": True}, ["{}"], ["[]"]),
        ({"regex": r"^[a-z]+@x\.com$"}, ["ab@x.com"], ["ab@xxcom", "ab@x.com "]),
        ({"regex": r"\$[0-9]\$"}, ["$1$"], ["1"]),
        ({"choice": ["a b", 'q"uo\\te', "ü\n", "/x/", "a"]}, ['q"uo\\te', "ü\n", "/x/", "a", "a b"], ["b", "a "]),
        ({"grammar": 'root ::= "a" b\nb ::= [0-9]+'}, ["a12"], ["a", "12"]),
        ({"grammar": 'start: "a" B\nB: /[0-9]+/'}, ["a12"], ["a", "12"]),
    ],
)
def test_structured_outputs(given: Any, yes: list[str], no: list[str]) -> None:
    grammar = StructuredOutputs.model_validate(given).grammar()
    assert [text for text in yes + no if matches(grammar, text)] == yes


@hypothesis.given(st.lists(st.sampled_from(["start", "%llguidance", ":", " ", "\n", "\t", "\r", "x"]), max_size=8))
def test_lark_is_told_from_gbnf_as_the_library_does(parts: list[str]) -> None:
    assert is_lark("".join(parts)) == is_lark_syntax("".join(parts))


@pytest.mark.parametrize(
    "asked",
    [
        {"guided_grammar": 'root ::= "a"'},
        {"guided_json": SCHEMA},
        {"structured_outputs": {"regex": "a"}},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_a_grammar_is_made_once(asked: dict[str, Any]) -> None:
    form = FormFields.model_validate(asked)
    assert form.grammar is not None
    assert form.grammar is form.grammar


def test_the_older_fields_mean_the_same() -> None:
    form = FormFields.model_validate({"guided_json": SCHEMA, "guided_whitespace_pattern": " "})
    assert form.grammar == StructuredOutputs.model_validate({"json": SCHEMA, "whitespace_pattern": " "}).grammar()
    assert form.form_field == "guided_json"
    form = FormFields.model_validate({"guided_choice": ["a", "b"], "response_format": {"type": "text"}})
    assert matches(form.grammar, "b")
    with pytest.raises(ValidationError, match="guided_choice: choice"):
        FormFields.model_validate({"guided_choice": []})
    with pytest.raises(ValidationError, match="guided_whitespace_pattern: only guided_json"):
        FormFields.model_validate({"guided_regex": "a", "guided_whitespace_pattern": " "})
    with pytest.raises(ValidationError, match="only json and json_object have whitespace"):
        FormFields.model_validate({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}})
    with pytest.raises(ValidationError, match="guided_regex: response_format asks for a form already"):
        FormFields.model_validate({"guided_regex": "a", "response_format": {"type": "json_object"}})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"type": "json_schema"}, "json_schema"),
        ({"type": "json_object", "json_schema": {"name": "n", "schema": {}}}, "json_schema"),
        ({"type": "text", "schema": {}}, "schema"),
        ({"type": "yaml"}, "type"),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "schema"),
        ({"type": "json_object", "schema": "{"}, "not valid JSON"),
        ({"type": "json_object", "schema": "[]"}, "a JSON object"),
        ({"type": "json_object", "schema": "[" * 100_000}, "not valid JSON: recursion"),
        ({"type": "json_object", "schema": {"description": "x" * (256 << 10)}}, "characters"),
        ({"type": "json_object", "schemas": {}}, "schemas"),
    ],
)
def test_no_response_format(given: Any, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ResponseFormat.model_validate(given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "one of"),
        ({"regex": "a", "choice": ["a"]}, "one of"),
        ({"choice": []}, "choice"),
        ({"choice": [""]}, "choice"),
        ({"structural_tag": "x"}, "structural_tag"),
        ({"regex": "a" * (33 << 10)}, "characters"),
        ({"grammar": "root ::= ["}, "cannot be read"),
        ({"grammar": "root ::= " + "(" * 8000}, "cannot be read"),
        ({"grammar": "x ::= [a]"}, "root"),
        ({"grammar": "root ::= " + "x" * 9000}, "characters"),
    ],
)
def test_no_structured_output(given: Any, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        StructuredOutputs.model_validate(given)


def test_options_inside_a_schema_relax_nothing() -> None:
    loose = {"x-guidance": {"lenient": True, "whitespace_pattern": ".*"}, "type": "object", "not": {"required": ["a"]}}
    matcher = llguidance.LLMatcher(GRAMMARS.trie, of_schema(loose), log_level=0)
    assert "not" in matcher.get_error()
