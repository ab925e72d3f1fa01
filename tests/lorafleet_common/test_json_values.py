"""How many values a body has is known before it is parsed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_common.json_values import TooManyValues, check_num_values

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab"\\[]{},:\n一')),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(st.sampled_from('a"\\[{'), max_size=3), inner),
    max_leaves=40,
)


def num_values(value: Any) -> int:
    """Strings, lists, objects and names."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(num_values, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(num_values, value))
    return int(isinstance(value, str))


@given(JSON, st.booleans(), st.integers(0, 30))
def test_values_are_counted_as_a_parser_would(value: Any, ascii_only: bool, most: int) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    if num_values(value) <= most:
        check_num_values(body, most=most)
    elif len(body) > most:
        with pytest.raises(TooManyValues, match=f"more than {most} strings"):
            check_num_values(body, most=most)


def num_commas(value: Any) -> int:
    """Items beyond the first one of each list and object."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return max(0, len(value) - 1) + sum(map(num_commas, inner))
    return 0


@given(JSON, st.integers(1, 30))
def test_items_are_counted_numbers_among_them(value: Any, most: int) -> None:
    body = json.dumps(value).encode() + b" " * (1 << 16)
    if num_commas(value) < most:
        check_num_values(body, most_items=most)
    else:
        with pytest.raises(TooManyValues, match=f"more than {most} items"):
            check_num_values(body, most_items=most)
