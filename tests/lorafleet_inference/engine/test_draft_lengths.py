"""How many draft tokens a sequence has, when it has none for a while, and what is remembered for the requests after it."""

import pytest

from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.pace import Pace
from lorafleet_inference.engine.speculation import (
    FIRST_LENGTH,
    HOPE,
    HOPE_OF_REQUESTS,
    MAX_ADAPTERS,
    MEMORY,
    UNKNOWN_PACE_REQUESTS,
    DraftLength,
    RightParts,
    Speculator,
    is_worthwhile,
)


def tokens(count: int) -> list[int]:
    return [1] * count


class TestLength:
    """As long as the drafts before were right."""

    def test_the_first_is_short(self) -> None:
        assert DraftLength(16).number(tokens(9), 99) == FIRST_LENGTH
        assert DraftLength(16, first=2).number(tokens(9), 99) == 2
        assert DraftLength(3, first=9).number(tokens(9), 99) == 3

    def test_there_may_be_drafts_from_the_first_token_on(self) -> None:
        assert DraftLength(4).number([], 4) == 4
        assert DraftLength(4).is_likely([])

    @pytest.mark.parametrize(("most", "expected"), [(3, 3), (1, 1), (0, 0), (-2, 0)])
    def test_no_more_than_there_is_room_for(self, most: int, expected: int) -> None:
        assert DraftLength(4).number(tokens(9), most) == expected

    def test_a_right_one_doubles_it_and_a_wrong_token_cuts_it_to_what_was_right(self) -> None:
        one, found = DraftLength(20), []
        for num_draft, num_right in ((4, 4), (8, 8), (16, 16), (20, 7), (7, 0)):
            one.told(num_draft, num_right, 9)
            found.append(one.number(tokens(99), 99))
        assert found == [8, 16, 20, 7, 1]

    def test_a_draft_for_which_there_was_little_room_takes_nothing_away(self) -> None:
        one = DraftLength(16)
        one.told(4, 4, 9)
        one.told(1, 1, 13)
        assert one.number(tokens(99), 99) == 8

    def test_what_part_was_right(self) -> None:
        one = DraftLength(16, right_part=0.5)
        one.told(4, 1, 9)
        assert one.right_part == pytest.approx(MEMORY * 0.5 + (1 - MEMORY) * 0.25)
        one.hope()
        assert one.right_part == pytest.approx(0.45 + HOPE * 0.55)
        assert DraftLength(16).right_part == 1.0


class TestPauses:
    """Where nothing was right there are none for a while."""

    @staticmethod
    def resumes(one: DraftLength) -> int:
        """With how many tokens there is a draft again."""
        found = next(count for count in range(999) if one.number(tokens(count), 9))
        assert found == next(count for count in range(999) if one.is_likely(tokens(count)))
        return found

    def test_each_is_twice_as_long_as_the_one_before(self) -> None:
        one, found = DraftLength(16), []
        for _ in range(9):
            one.told(4, 0, 100)
            found.append(self.resumes(one) - 101)
        assert found == [1, 2, 4, 8, 16, 32, 64, 64, 64], (
            "101 tokens are known when a draft after 100 of them was wrong"
        )

    def test_one_right_token_ends_the_row(self) -> None:
        one = DraftLength(16)
        one.told(4, 0, 100)
        one.told(4, 0, 100)
        one.told(4, 1, 200)
        one.told(4, 0, 300)
        assert self.resumes(one) == 302

    def test_patience_is_for_drafts_in_a_row(self) -> None:
        one = DraftLength(16, patience=2)
        for num_right in (0, 0, 1, 0, 0):
            one.told(4, num_right, 100)
            assert self.resumes(one) == 0
        one.told(4, 0, 100)
        assert self.resumes(one) == 102


class TestAnnounced:
    """Who waits for the newest token because of a draft that then is none, waits in vain: so it is a while until the next time."""

    LEADS_ELSEWHERE = (1, 2, 3, 1, 2, 9)

    def test_in_vain(self) -> None:
        one = Speculator(4)
        assert one.is_likely(self.LEADS_ELSEWHERE[:-1])
        assert one.draft(self.LEADS_ELSEWHERE, 4) == []
        assert not one.is_likely((1, 2, 3, 1, 2, 3)), "six tokens, and a pause of one"
        assert one.is_likely((1, 2, 3, 1, 2, 3, 1))

    def test_what_nobody_waited_for_is_looked_up_again_at_once(self) -> None:
        one = Speculator(4)
        assert one.draft(self.LEADS_ELSEWHERE, 4) == []
        assert one.is_likely((*self.LEADS_ELSEWHERE, 1, 2))

    def test_a_draft_that_came_is_no_wait_in_vain(self) -> None:
        one = Speculator(4)
        assert one.is_likely((1, 2, 3, 1, 2))
        assert one.draft((1, 2, 3, 1, 2, 3), 4) == [1, 2, 3, 1]
        assert one.draft((1, 2, 3, 1, 2, 3, 9), 4) == [], "nobody waited for this one"
        assert one.is_likely((1, 2, 3, 1, 2, 3, 9, 1, 2))

    def test_without_room_nothing_is_said_of_it(self) -> None:
        one = Speculator(4)
        assert one.is_likely(self.LEADS_ELSEWHERE[:-1])
        assert one.draft(self.LEADS_ELSEWHERE, 0) == []
        assert one.draft(self.LEADS_ELSEWHERE, 4) == []
        assert one.is_likely((*self.LEADS_ELSEWHERE, 1, 2))

    def test_a_pause_has_neither(self) -> None:
        one = Speculator(4)
        assert one.draft((1, 2) * 3, 1) == [1]
        one.told(1, 0, 6)
        assert not one.is_likely((1, 2) * 3)
        assert one.draft((1, 2, 1, 2, 1, 2, 1), 4) == []
        assert one.draft((1, 2) * 4, 4) == [1], "one token is tried again"


class TestRightParts:
    """What requests of an adapter begin with."""

    def test_the_drafts_before_count(self) -> None:
        parts = RightParts()
        assert parts.begin(None) == 1.0
        parts.told(None, 4, 1)
        expected = MEMORY + (1 - MEMORY) * 0.25
        assert parts.begin(None) == pytest.approx(expected)
        expected += HOPE_OF_REQUESTS * (1 - expected)
        assert parts.begin(None) == pytest.approx(expected), "each request takes a little of it away"
        assert parts.begin(AdapterKey("other", "1")) == 1.0

    def test_the_first_that_is_told_of_an_adapter(self) -> None:
        parts = RightParts()
        parts.told(None, 2, 0)
        assert parts.begin(None) == pytest.approx(MEMORY)

    def test_the_adapter_that_was_touched_the_longest_ago_is_forgotten(self) -> None:
        parts = RightParts()
        names = [AdapterKey(f"a{number}", "1") for number in range(MAX_ADAPTERS + 1)]
        for name in names[:-1]:
            parts.told(name, 1, 0)
        parts.told(names[0], 1, 0)
        parts.begin(names[-1])
        assert parts.begin(names[2]) == pytest.approx(MEMORY), "of so many it is remembered"
        assert parts.begin(names[0]) == pytest.approx(MEMORY * MEMORY)
        assert parts.begin(names[1]) == 1.0, "it was the oldest"


class TestWorth:
    """A draft token has to give more than it takes."""

    def test_what_is_not_known_yet(self) -> None:
        for pace in (
            None,
            Pace(0.3, fixed=0.04, prompt_token=0.0, answer_token=0.005),
            Pace(0.3, fixed=0.0, prompt_token=0.004, answer_token=0.0),
        ):
            assert is_worthwhile(pace, UNKNOWN_PACE_REQUESTS, 1.0)
            assert not is_worthwhile(pace, UNKNOWN_PACE_REQUESTS + 1, 1.0)

    def test_half_of_it_is_enough(self) -> None:
        assert not is_worthwhile(Pace(0.3, fixed=0.0, prompt_token=2.0, answer_token=1.0), 1, 1.0)
        assert not is_worthwhile(Pace(0.3, fixed=1.0, prompt_token=2.0, answer_token=0.0), 1, 1.0)

    def test_it_has_to_be_more(self) -> None:
        pace = Pace(0.3, fixed=4.0, prompt_token=2.0, answer_token=1.0)
        assert [is_worthwhile(pace, number, 1.0) for number in (0, 1, 3, 4, 5)] == [True, True, True, False, False]
        assert [is_worthwhile(pace, 1, part) for part in (0.5, 0.4, 0.3)] == [True, False, False]

    def test_the_round_of_a_draft_model_is_for_all_answers(self) -> None:
        pace = Pace(0.3, fixed=4.0, prompt_token=1.0, answer_token=1.0)
        assert [is_worthwhile(pace, 2, 1.0, seconds) for seconds in (3.75, 4.0, 4.25)] == [True, False, False]
