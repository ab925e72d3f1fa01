"""Stop strings are never shown, wherever tokens cut them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_inference.text.stopping import Stopped, StopStrings

stops = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=3)
"""Two letters: stop strings overlap each other and begin again within themselves."""


def one_by_one(text: str, stop_strings: list[str], *, shown: bool = False) -> tuple[str, bool]:
    """Slow twin: look at the text after every character."""
    for end in range(1, len(text) + 1):
        begins = [end - len(stop) for stop in stop_strings if text[:end].endswith(stop)]
        if begins:
            return text[: end if shown else min(begins)], True
    return text, False


@settings(max_examples=150)
@given(stop_strings=stops, show_stop=st.booleans(), data=st.data())
def test_any_cut_of_the_text_gives_what_reading_by_character_gives(
    stop_strings: list[str], show_stop: bool, data: st.DataObject
) -> None:
    pieces = st.sampled_from([*stop_strings, *(stop[:-1] for stop in stop_strings), "a", "b"])
    text = "".join(data.draw(st.lists(pieces, max_size=6)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    watcher, shown, met = StopStrings(stop_strings, shown=show_stop), "", False
    for part in parts:
        stopped = watcher.push(part)
        shown += stopped.text
        if stopped.met:
            met = True
            break
    if not met:
        shown += watcher.finish()
        assert not any(stop in shown for stop in stop_strings)
    assert (shown, met) == one_by_one(text, stop_strings, shown=show_stop)


def test_text_that_may_become_a_stop_string_waits_and_comes_when_it_does_not() -> None:
    watcher = StopStrings(["\nUser:"])
    assert watcher.push("yes\nUs").text == "yes"
    assert watcher.push("ually").text == "\nUsually"
    assert watcher.push("\nUser: hi").met


@pytest.mark.parametrize(
    ("stop_strings", "pushed", "shown"),
    [
        (["#"], "ab", "ab"),  # one character is complete or not: nothing is kept back
        (["abc"], "ab", ""),
        (["abc"], "a", ""),
        (["abc"], "aab", "a"),
        (["abc"], "xab", "x"),
        (["abc"], "bc", "bc"),
        (["abc", "b#"], "ab", ""),
        (["zz", "b#"], "ab", "a"),
        (["abcd"], "abc", ""),
        (["abcd"], "xyab", "xy"),
    ],
)
def test_no_more_is_kept_back_than_may_become_a_stop_string(stop_strings: list[str], pushed: str, shown: str) -> None:
    watcher = StopStrings(stop_strings)
    assert watcher.push(pushed) == Stopped(shown, met=False)
    assert watcher.finish() == pushed[len(shown) :]
    assert watcher.finish() == "", "given once"


@pytest.mark.parametrize(
    ("stop_strings", "shown"),
    [
        (["abc"], "x"),
        (["bc", "abc"], "x"),
        (["abc", "bc"], "x"),
        (["c", "bc"], "xa"),
        (["xabc"], ""),
        (["d", "b"], "xa"),
        (["xabcd", "b"], "xa"),
    ],
)
def test_of_stop_strings_that_end_together_the_longest_is_cut(stop_strings: list[str], shown: str) -> None:
    watcher = StopStrings(stop_strings)
    assert watcher.push("xabcd") == Stopped(shown, met=True)
    assert watcher.finish() == "", "what follows a stop string is not shown"


def test_without_stop_strings_all_is_shown_at_once() -> None:
    watcher = StopStrings([])
    assert not watcher
    assert StopStrings(["abc"])
    assert watcher.push("abc") == Stopped("abc", met=False)
    assert watcher.push("") == Stopped("", met=False)
    assert watcher.finish() == ""
