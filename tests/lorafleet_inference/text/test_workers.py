"""Programs of strangers that run in processes of their own hold up nobody but themselves and those that do as they do."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import support
from support.odd_program import MAX_CPU_SECONDS

from lorafleet_inference.text.workers import OutOfHand, Workers


def started(rest_seconds: float, module: str = "support.odd_program") -> Workers[bytes]:
    return Workers(
        module,
        bytes,
        lanes=(1, 2, 1),
        max_seconds=60.0,
        out_of_hand=lambda answer: "it said so" if answer.startswith(b"bad") else None,
        environment={"PYTHONPATH": str(Path(next(iter(support.__path__))).parent)},
        rest_seconds=rest_seconds,
    )


@pytest.fixture
def workers() -> Iterator[Workers[bytes]]:
    with closing(started(60.0)) as made:
        yield made


async def ask(workers: Workers[bytes], program: str, job: bytes = b"job") -> bytes:
    return await workers.ask(program, job, MAX_CPU_SECONDS)


async def test_programs_that_get_out_of_hand_by_turns_hold_up_each_other_alone() -> None:
    with closing(started(0.0)) as workers:
        for program in ("good", "also good", "one", "other"):
            assert await ask(workers, program)
        for program in ("one", "other"):  # had been good until now
            with pytest.raises(OutOfHand, match="more than 1 seconds"):
                await ask(workers, program, b"endless")
        for programs in (("one", "other"), ("new", "newer")):
            hostile = [asyncio.create_task(ask(workers, program, b"endless")) for program in programs]
            while not hostile[0].done():
                assert await ask(workers, "good")
                assert await ask(workers, "also good")
            assert not hostile[1].done(), "there is one process for both"
            for task in hostile:
                with pytest.raises(OutOfHand, match="more than 1 seconds"):
                    await task


async def test_many_jobs_of_one_program_leave_room_for_those_of_others(workers: Workers[bytes]) -> None:
    assert await ask(workers, "busy")
    assert await ask(workers, "quiet")
    many = [asyncio.create_task(ask(workers, "busy", b"long")) for _ in range(4)]
    await asyncio.sleep(0)
    assert await ask(workers, "quiet")
    assert not any(one.done() for one in many[1:])
    assert len(await asyncio.gather(*many)) == 4


@pytest.mark.parametrize(("job", "why"), [(b"death", "ended the process"), (b"bad", "said so")])
async def test_a_process_is_not_used_again_after_a_program_got_out_of_hand(
    workers: Workers[bytes], job: bytes, why: str
) -> None:
    before = await ask(workers, "other new")
    with pytest.raises(OutOfHand, match=why):
        await ask(workers, "new", job)
    with pytest.raises(OutOfHand, match=why):  # it rests
        workers.ask_now("new", b"job", MAX_CPU_SECONDS)
    assert await ask(workers, "third") not in (before, b"")
    assert len(workers.pids) == 1


async def test_a_program_goes_back_to_the_process_that_ran_it_last(workers: Workers[bytes]) -> None:
    for program in ("a", "b"):
        await ask(workers, program)
    answers = await asyncio.gather(*(ask(workers, program) for program in ("a", "b")))
    assert answers[0] != answers[1]
    for _ in range(3):
        assert [await ask(workers, program) for program in ("a", "b")] == answers


async def test_a_program_that_begins_to_take_long_is_given_up_soon_and_has_its_time_elsewhere(
    workers: Workers[bytes],
) -> None:
    for program in ("good", "one", "other"):
        assert await ask(workers, program)
    lane = workers.pids
    assert (await ask(workers, "one", b"long")).startswith(b"long"), "it comes to its end within the whole limit"
    assert int((await ask(workers, "one")).split()[1]) == lane[0], "with the new ones from now on"
    hostile = [asyncio.create_task(ask(workers, program, b"endless")) for program in ("other", "another")]
    while not hostile[0].done():
        assert await ask(workers, "good")
    for task in hostile:
        with pytest.raises(OutOfHand, match="more than 1 seconds"):
            await task


async def test_programs_that_are_new_or_do_not_end_give_way_to_those_who_answer(workers: Workers[bytes]) -> None:
    new = int((await ask(workers, "good")).split()[1])
    known = int((await ask(workers, "good")).split()[1])
    assert new != known
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert mine == os.getpriority(os.PRIO_PROCESS, known) < os.getpriority(os.PRIO_PROCESS, new)


async def test_what_a_process_needs_to_begin_is_taken_from_nobody_either() -> None:
    with closing(started(60.0, "support.nice_program")) as workers:
        assert await ask(workers, "new") == b"nicer"
