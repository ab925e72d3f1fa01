"""Reasoning is told from the answer, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_inference.text.reasoning import KINDS, ReasoningSplitter, Tags, Thought, tags_of
from lorafleet_inference.text.tool_calls.parts import Said

TAGS = Tags("<think>", "</think>")
CASES = [
    ("a\nb", False, "", "a\nb"),
    ("<think>\nwhy\n</think>\n\nbecause\n", False, "why", "because\n"),
    ("\n<think>why</think>because", False, "why", "because"),
    ("why\nnot\n</think>\n\nbecause", True, "why\nnot", "because"),
    ("why", True, "why", ""),
    ("why</thi", True, "why</thi", ""),
    ("<thin", False, "", "<thin"),
    ("<think>", False, "", ""),
    ("so <think>no</think>", False, "", "so <think>no</think>"),
    ("</think>yes</think>", True, "", "yes</think>"),
    ("", True, "", ""),
]


def split(pieces: list[str], *, inside: bool) -> tuple[str, str]:
    splitter = ReasoningSplitter(TAGS, inside=inside)
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    thoughts = [part for part in parts if isinstance(part, Thought)]
    said = [part for part in parts if isinstance(part, Said)]
    assert parts == [*thoughts, *said], "reasoning comes first"
    assert all(part.text for part in (*thoughts, *said))
    return "".join(part.text for part in thoughts), "".join(part.text for part in said)


@pytest.mark.parametrize(("text", "inside", "thought", "said"), CASES)
def test_reasoning_stands_first(text: str, inside: bool, thought: str, said: str) -> None:
    assert split([text], inside=inside) == (thought, said)
    assert split(list(text), inside=inside) == (thought, said)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think", "\n", " ", "a"]), max_size=12), st.data())
def test_the_cuts_of_a_stream_change_nothing(words: list[str], data: st.DataObject) -> None:
    text, inside = "".join(words), data.draw(st.booleans())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces, inside=inside) == split([text], inside=inside) == split(list(text), inside=inside)


def test_tags_are_found_in_templates() -> None:
    assert tags_of("{{ content.split('</think>')[-1] }}") == TAGS
    assert tags_of("{{ messages }}") is None
    for one in KINDS:
        assert tags_of(f"{{{{ '{one.begin}' }}}}") == one
