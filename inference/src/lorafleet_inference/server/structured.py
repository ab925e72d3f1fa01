"""Forms of answers: what OpenAI, vLLM and LoRAX clients ask for, as grammars of llguidance.

The engine compiles a grammar and refuses what it cannot enforce to the letter, naming the keyword.
"""

import json
import re
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self, cast

import llguidance
from llguidance.gbnf_to_lark import gbnf_to_lark
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from lorafleet_inference.server.strict import Listed, NullIsAbsent, parsed

MAX_SCHEMA_CHARS: Final = 256 << 10
MAX_GRAMMAR_CHARS: Final = 32 << 10
MAX_GBNF_CHARS: Final = 8 << 10
"""Read by Python, some 250 characters a millisecond."""
MAX_ERROR_CHARS: Final = 300
MAX_CHOICES: Final = 1024
WHITESPACE: Final = r" |\r?\n[ \t]{0,16}"
"""Between the parts of a JSON document: a space, or a new line and its indentation. A model that has nothing to say else
fills its answer with spaces."""

_LARK: Final = re.compile(r"(?m)^[^\S\n]*(?:%llguidance\b|start\s*:)")
"""In Lark's notation a line begins so. The library's own pattern for it takes the square of the time for empty lines."""
_GUIDED: Final = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
"""vLLM's older fields, which stand in the request itself."""
Schema = dict[str, JsonValue] | bool


class _Strict(NullIsAbsent):
    """A field that is not known is refused, since it would narrow the answer further."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class JsonSchemaFormat(_Strict):
    """`response_format.json_schema`. With or without `strict`, the schema is enforced."""

    name: str = ""
    description: str = ""
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool = True


class ResponseFormat(_Strict):
    """OpenAI's `response_format`, and LoRAX's, which has the schema beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Annotated[Schema | str | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None and self.schema_ is None:
            raise ValueError("json_schema: the type asks for it")
        if self.type != "json_schema" and self.json_schema is not None:
            raise ValueError(f"json_schema: the type is {self.type}")
        if self.type == "text" and self.schema_ is not None:
            raise ValueError("schema: the type is text")
        self.grammar()
        return self

    def grammar(self) -> str | None:
        """Return what the answer has to match; None where it is free."""
        return self._made

    @cached_property
    def _made(self) -> str | None:
        if self.type == "text":
            return None
        if self.json_schema is not None:
            return of_schema(self.json_schema.schema_)
        return of_schema({"type": "object"} if self.schema_ is None else self.schema_)


class StructuredOutputs(_Strict):
    """vLLM's `structured_outputs`: one form, and how JSON is spaced."""

    json_: Annotated[Schema | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Listed[str] | None = None
    grammar_: Annotated[str | None, Field(alias="grammar")] = None
    json_object: bool = False
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [self.json_, self.regex, self.choice, self.grammar_, self.json_object or None]
        if sum(form is not None for form in forms) != 1:
            raise ValueError("give one of json, regex, choice, grammar and json_object")
        if self.json_ is None and not self.json_object and (self.whitespace_pattern or self.disable_any_whitespace):
            raise ValueError("only json and json_object have whitespace")
        self.grammar()
        return self

    def grammar(self) -> str:
        """Return what the answer has to match."""
        return self._made

    @cached_property
    def _made(self) -> str:
        if self.regex is not None:
            return of_regex(self.regex)
        if self.choice is not None:
            return of_choice(self.choice)
        if self.grammar_ is not None:
            return of_grammar(self.grammar_)
        return of_schema(
            {"type": "object"} if self.json_ is None else self.json_,
            whitespace=None if self.disable_any_whitespace else self.whitespace_pattern or WHITESPACE,
        )


class FormFields(BaseModel):
    """The fields of a request that ask for a form of the answer; at most one of them may."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: Listed[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None

    @model_validator(mode="after")
    def _one_form_is_asked_for(self) -> Self:
        named = self._named()
        if len(named) > 1:
            raise ValueError(f"{named[1]}: {named[0]} asks for a form already")
        if self.guided_whitespace_pattern is not None and "guided_json" not in named:
            raise ValueError("guided_whitespace_pattern: only guided_json has whitespace")
        if named and named[0] in _GUIDED:
            _ = self._guided  # made now, where it can be refused
        return self

    @property
    def form_field(self) -> str | None:
        """The field that asks for a form; None where the answer is free."""
        return next(iter(self._named()), None)

    @property
    def grammar(self) -> str | None:
        """What the answer has to match."""
        match self.form_field:
            case "response_format" if self.response_format is not None:
                return self.response_format.grammar()
            case "structured_outputs" if self.structured_outputs is not None:
                return self.structured_outputs.grammar()
            case None:
                return None
            case _:
                return self._guided.grammar()

    def _named(self) -> list[str]:
        named = [name for name in ("structured_outputs", *_GUIDED) if getattr(self, name) is not None]
        is_free = self.response_format is None or self.response_format.type == "text"
        return named if is_free else ["response_format", *named]

    @cached_property
    def _guided(self) -> StructuredOutputs:
        field = next(name for name in _GUIDED if getattr(self, name) is not None)
        given = {field.removeprefix("guided_"): getattr(self, field)}
        given |= {"whitespace_pattern": self.guided_whitespace_pattern}
        try:
            return StructuredOutputs.model_validate(given)
        except ValidationError as error:
            message = error.errors(include_url=False, include_input=False, include_context=False)[0]["msg"]
            raise ValueError(f"{field}: {message.removeprefix('Value error, ')}") from None


def of_schema(schema: Schema | str, *, whitespace: str | None = WHITESPACE) -> str:
    """Return the grammar of the JSON documents of a schema; `whitespace` is a pattern, None allows none.

    Raises:
        ValueError: it is no JSON document, or too large.
    """
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    if len(text) > MAX_SCHEMA_CHARS:
        raise ValueError(f"the schema has {len(text)} characters; at most {MAX_SCHEMA_CHARS} are taken")
    try:
        document = parsed(text)
    except ValueError as error:
        raise ValueError(f"the schema is not valid JSON: {error}") from None
    if not isinstance(document, dict | bool):
        raise ValueError("a schema is a JSON object")
    # a schema may carry options of the library in itself; those here win over them
    options: dict[str, Any] = {"lenient": False, "coerce_one_of": False, "whitespace_flexible": whitespace is not None}
    options |= {"item_separator": ",", "key_separator": ":"}
    if whitespace is not None:
        options["whitespace_pattern"] = whitespace
    grammar: str = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=cast("Any", options))
    return grammar


def of_regex(pattern: str) -> str:
    """Return the grammar of the texts that match a pattern as a whole, in the syntax of Rust's regex crate.

    Raises:
        ValueError: it is too large.
    """
    _check_size("the pattern", pattern)
    # anchors at the ends mean nothing here, and clients write them
    bare = pattern.removeprefix("^")
    if bare.endswith("$") and not bare.endswith("\\$"):
        bare = bare[:-1]
    return llguidance.LLMatcher.grammar_from_regex(bare)


def of_choice(choices: list[str]) -> str:
    """Return the grammar of some texts.

    Raises:
        ValueError: there are none, too many, or an empty one.
    """
    if not 1 <= len(choices) <= MAX_CHOICES or not all(choices):
        raise ValueError(f"choice: from 1 to {MAX_CHOICES} texts, none empty")
    _check_size("choice", "".join(choices))
    lark = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return llguidance.LLMatcher.grammar_from_lark(lark)


def of_grammar(text: str, most: int = MAX_GRAMMAR_CHARS) -> str:
    """Return a context-free grammar, given in Lark's notation or in GBNF's (`root ::= …`).

    Raises:
        ValueError: it is too large, or no GBNF.
    """
    _check_size("the grammar", text, most)
    if is_lark(text):
        return llguidance.LLMatcher.grammar_from_lark(text)
    _check_size("the grammar", text, MAX_GBNF_CHARS)
    try:
        lark = gbnf_to_lark(text)
    except Exception as error:  # noqa: BLE001  the library raises all sorts
        raise ValueError(f"the grammar cannot be read: {error}"[:MAX_ERROR_CHARS]) from None
    return llguidance.LLMatcher.grammar_from_lark(lark)


def is_lark(text: str) -> bool:
    """Whether a grammar is in Lark's notation."""
    return _LARK.search(text) is not None


def _check_size(what: str, text: str, most: int = MAX_GRAMMAR_CHARS) -> None:
    if len(text) > most:
        raise ValueError(f"{what} has {len(text)} characters; at most {most} are taken")
