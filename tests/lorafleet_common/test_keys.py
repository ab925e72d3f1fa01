"""Keys: the file, who is known, what of the limits is left."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from lorafleet_common.errors import ConfigError
from lorafleet_common.keys.bucket import Bucket
from lorafleet_common.keys.errors import ModelForbidden, RateLimited, Unauthorized
from lorafleet_common.keys.file import KeysFile, open_guard
from lorafleet_common.keys.guard import Guard, hash_of, new_key
from lorafleet_common.keys.metrics import KeyMetrics
from lorafleet_common.keys.quota import duration
from lorafleet_common.metrics import MetricTable
from lorafleet_contract.keys import KeysError, read_keys

KEY = new_key()


def entry(name: str = "team-a", key: str = KEY, **fields: Any) -> dict[str, Any]:
    return {"name": name, "hashes": [hash_of(key)], **fields}


def content(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": entries}).encode()


class World:
    """A guard with a clock that the test turns."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.now = 1000.0
        self.table = MetricTable()
        self.metrics = KeyMetrics(self.table, "test_")
        self.guard = Guard(read_keys(content(*entries)), self.metrics, clock=lambda: self.now)

    def caller(self, key: str = KEY):
        return self.guard.identify(f"Bearer {key}")

    def text(self) -> str:
        return generate_latest(self.table.registry).decode()

    def metric(self, series: str) -> float:
        lines = self.text().splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{series} ")), 0.0)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"keys": [entry(tokensPerMinute=0)]}, "keys.0.tokensPerMinute: "),
        ({"keys": [entry(requestsPerMinute="60")]}, "keys.0.requestsPerMinute: "),
        ({"keys": [entry(maxConcurrentRequests=1.5)]}, "keys.0.maxConcurrentRequests: "),
        ({"keys": [entry(), entry("b", new_key(), model=["x"])]}, "keys.1.model: "),
        ({"keys": [entry(models=["a*b"])]}, "keys.0.models.0: "),
        ({"keys": [entry(models=[])]}, "keys.0.models: "),
        ({"keys": [entry("not a name")]}, "keys.0.name: "),
        ({"keys": [{"name": "a", "hashes": [KEY]}]}, "keys.0.hashes.0: "),
        ({"keys": [{"name": "a"}]}, "keys.0.hashes: "),
        ({"keys": [entry("a"), entry("a", new_key())]}, "the name a"),
        ({"keys": [entry("a"), entry("b")]}, "a and b have the same hash"),
        ({}, "keys: "),
        ({"keys": [], KEY: {}}, "(a field): "),
        ({"keys": [entry(), {**entry("b", new_key()), hash_of(KEY): {}}]}, "keys.1.(a field): "),
        ([], "dictionary"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_and_no_value_shown(document: Any, named: str) -> None:
    with pytest.raises(KeysError) as caught:
        read_keys(json.dumps(document).encode())
    assert named in str(caught.value)
    assert KEY not in str(caught.value)
    assert hash_of(KEY) not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_said_so(text: bytes) -> None:
    with pytest.raises(KeysError, match="is not valid JSON"):
        read_keys(text)


def test_a_field_that_stands_twice_is_refused() -> None:
    """Of two limits the last would count without a word."""
    with pytest.raises(KeysError, match="name: stands twice"):
        read_keys(b'{"keys": [{"name": "a", "name": "b", "hashes": []}]}')


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", pytest.param(KEY, id="the key alone")])
def test_a_request_without_a_key_is_told_where_it_goes(header: str | None) -> None:
    with pytest.raises(Unauthorized) as caught:
        World(entry()).guard.identify(header)
    assert caught.value.challenge == 'Bearer realm="lorafleet"'


@given(st.integers(0, len(KEY) - 1), st.characters(codec="latin-1"))
def test_only_the_whole_key_is_known(at: int, other: str) -> None:
    world = World(entry())
    assert world.guard.identify(f"bearer  {KEY} ").name == "team-a"
    wrong = KEY[:at] + other + KEY[at + 1 :]
    for given_key in {wrong, KEY[:at], f"{KEY}x", f"{KEY} {KEY}", "x" * 10_000, hash_of(KEY)} - {KEY}:
        with pytest.raises(Unauthorized):
            world.guard.identify(f"Bearer {given_key}")


def test_a_guard_holds_hashes_and_looks_up_by_them_alone() -> None:
    """No time that a comparison takes depends on how much of a key is right, as no key is there to compare with."""
    world = World(entry())
    world.caller()
    assert set(world.guard._entries) == {hash_of(KEY)}
    held = [world.guard._entries, world.guard._quotas, *world.guard._entries.values()]
    assert KEY not in repr(held)


def test_models_are_allowed_by_pattern_whether_they_exist_or_not() -> None:
    world = World(entry(models=["numerals", "team-a/*"]))
    caller = world.caller()
    for name in ("numerals", "team-a/x", "team-a/"):
        caller.check_model(name)
    for name in ("numerals2", "team-b/x", "team-a", ""):
        with pytest.raises(ModelForbidden, match="team-a does not have access"):
            caller.check_model(name)
    assert World(entry()).caller().may_use("anything")


def test_several_hashes_are_one_key() -> None:
    other = new_key()
    world = World({"name": "a", "hashes": [hash_of(KEY), hash_of(other)], "requestsPerMinute": 1})
    with world.caller().request():
        pass
    with pytest.raises(RateLimited), world.caller(other).request():
        pass


def test_requests_of_a_minute_are_limited_and_come_back() -> None:
    world = World(entry(requestsPerMinute=2))
    for left in (1, 0):
        with world.caller().request():
            assert world.caller().limit_headers() == {
                "x-ratelimit-limit-requests": "2",
                "x-ratelimit-remaining-requests": str(left),
                "x-ratelimit-reset-requests": ("30s", "1m0s")[1 - left],
            }
    with pytest.raises(RateLimited) as caught, world.caller().request():
        pass
    assert (caught.value.limit, caught.value.retry_after_seconds) == ("requests", 30)
    assert "try again in 30s" in caught.value.message
    world.now += 30
    with world.caller().request():
        pass
    assert world.metric('test_key_limited_total{key="team-a",limit="requests"}') == 1


def test_concurrency_is_released_on_every_way_out() -> None:
    world = World(entry(maxConcurrentRequests=1))
    for error in (None, ValueError(), asyncio.CancelledError(), GeneratorExit()):
        with suppress(ValueError, asyncio.CancelledError, GeneratorExit), world.caller().request():
            assert world.metric('test_key_requests_running{key="team-a"}') == 1
            with pytest.raises(RateLimited, match="1 requests running"), world.caller().request():
                pass
            if error is not None:
                raise error
        assert world.metric('test_key_requests_running{key="team-a"}') == 0


def test_tokens_are_held_back_by_estimate_and_settled_at_the_end() -> None:
    world = World(entry(tokensPerMinute=100))
    with world.caller().request() as grant:
        grant.reserve(80)
        assert world.caller().limit_headers()["x-ratelimit-remaining-tokens"] == "20"
        with world.caller().request() as other, pytest.raises(RateLimited) as caught:
            other.reserve(30)
        assert caught.value.retry_after_seconds == pytest.approx(6)
        grant.spend(15)
    assert world.caller().limit_headers()["x-ratelimit-remaining-tokens"] == "85"
    assert world.metric('test_key_tokens_total{key="team-a"}') == 15


def test_a_request_larger_than_a_minute_needs_a_full_minute_and_leaves_a_debt() -> None:
    world = World(entry(tokensPerMinute=100))
    with world.caller().request() as grant:
        grant.reserve(10)
        grant.spend(10)
    with world.caller().request() as grant, pytest.raises(RateLimited):
        grant.reserve(1000)
    world.now += 6
    with world.caller().request() as grant:
        grant.reserve(1000)
        grant.spend(200)
    with world.caller().request() as grant, pytest.raises(RateLimited) as caught:
        grant.reserve(1)
    assert caught.value.retry_after_seconds == pytest.approx(60.6)


def test_a_changed_entry_keeps_what_was_used() -> None:
    world = World(entry(requestsPerMinute=10, maxConcurrentRequests=1))
    with world.caller().request():
        world.guard.replace(read_keys(content(entry(requestsPerMinute=4, maxConcurrentRequests=2))))
        with world.caller().request():
            pass
        with pytest.raises(RateLimited) as caught, world.caller().request(), world.caller().request():
            pass
        assert caught.value.limit == "concurrency"
    assert world.caller().limit_headers()["x-ratelimit-remaining-requests"] == "1"
    world.guard.replace(read_keys(content(entry("other", new_key()))))
    with pytest.raises(Unauthorized):
        world.caller()
    assert 'key="team-a"' not in world.text()


def test_a_key_that_comes_back_while_its_requests_run_still_has_them() -> None:
    """What they count, they count for nobody that is shown, while the key is not in the file."""
    entries = [entry(maxConcurrentRequests=1, tokensPerMinute=100), entry("b", new_key())]
    world, other = World(*entries), read_keys(content(entries[1]))
    with world.caller().request() as grant:
        grant.reserve(30)
        for _ in range(2):
            world.guard.replace(other)
        world.guard.replace(read_keys(content(*entries)))
        with pytest.raises(RateLimited, match="1 requests running"), world.caller().request():
            pass
        assert world.caller().limit_headers()["x-ratelimit-remaining-tokens"] == "70"
        world.guard.replace(other)
        grant.spend(20)
    world.guard.count("team-a", 200)
    assert 'key="team-a"' not in world.text()
    assert world.metric('test_key_tokens_total{key="_other"}') == 20
    assert world.metric('test_key_requests_total{code="200",key="_other"}') == 1
    world.guard.replace(other)
    world.guard.replace(read_keys(content(*entries)))
    assert world.caller().limit_headers()["x-ratelimit-remaining-tokens"] == "100", "nothing runs, nothing is kept"


amounts = st.integers(1, 300)


@given(st.integers(1, 100), st.lists(st.tuples(st.floats(0, 100), amounts), max_size=60))
def test_whoever_waits_as_told_takes_no_more_than_the_rate(per_minute: int, asked: list[tuple[float, int]]) -> None:
    now, bucket = 0.0, Bucket(per_minute, 0.0)
    taken: list[tuple[float, int]] = []
    for pause, amount in asked:
        now += pause
        seconds = bucket.wait_seconds(amount, now)
        if not seconds:
            bucket.take(amount, now)
            taken.append((now, amount))
        else:
            assert not bucket.wait_seconds(amount, now + seconds + 1e-6)
            now += seconds + 1e-6
    for first in range(len(taken)):
        total = 0
        for at, amount in taken[first:]:
            # the last one may go beyond, as one that is larger than a minute's needs no more than a full minute
            assert total <= per_minute * (1 + (at - taken[first][0]) / 60) + 1e-6
            total += amount


@given(st.integers(1, 100), st.lists(st.tuples(st.floats(0, 30), amounts, st.floats(0, 1)), max_size=40))
def test_what_is_given_back_never_makes_more_than_a_minute(
    per_minute: int, asked: list[tuple[float, int, float]]
) -> None:
    now, bucket, used = 0.0, Bucket(per_minute, 0.0), 0.0
    for pause, amount, share in asked:
        bucket.take(amount, now)
        now += pause
        bucket.take(amount * share - amount, now)
        used += amount * share
        assert bucket.level(now) <= per_minute
        assert bucket.level(now) <= per_minute + now * per_minute / 60 - used + per_minute + 1e-6


def test_durations_are_as_openai_writes_them() -> None:
    assert [duration(one) for one in (0, 0.0001, 0.25, 1, 1.5, 59.9999, 60, 360.2)] == [
        "0ms", "1ms", "250ms", "1s", "1.5s", "1m0s", "1m0s", "6m1s",
    ]  # fmt: skip


def test_a_first_file_that_is_wrong_stops_the_program(tmp_path: Path) -> None:
    path, metrics = tmp_path / "keys.json", KeyMetrics(MetricTable(), "test_")
    with pytest.raises(ConfigError, match=r"--keys-file: .* cannot be read: No such file"):
        open_guard(path, metrics, option="--keys-file")
    path.write_bytes(content(entry(tokensPerMinute=-1)))
    with pytest.raises(ConfigError, match=r"--keys-file: .*keys.0.tokensPerMinute"):
        open_guard(path, metrics, option="--keys-file")
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        open_guard(path, metrics, option="--keys-file")
    guard, file = open_guard(None, metrics, option="--keys-file")
    assert not guard.asks
    assert file is None
    assert guard.identify(None).name == ""


async def test_a_new_file_is_taken_and_a_bad_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The kubelet replaces the whole folder of a Secret by a link."""
    for name, one in (("first", KEY), ("second", new_key())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.json").write_bytes(content(entry(key=one)))
    link = tmp_path / "data"
    link.symlink_to("first")
    table = MetricTable()
    file = KeysFile(link / "keys.json", KeyMetrics(table, "test_"), option="--keys-file")
    world = World()
    world.guard, world.table = file.guard, table
    await file.look()
    assert world.caller().name == "team-a"

    async def become(name: str) -> None:
        (tmp_path / "new").symlink_to(name)
        (tmp_path / "new").replace(link)
        await file.look()

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "keys.json").write_text(f'{{"keys": [{{"name": "{KEY}"}}]}}')
    for wrong in ("broken", "nothing"):
        await become(wrong)
        await file.look()
        assert world.caller().name == "team-a"
        assert world.metric("test_keys_stale") == 1
    assert world.metric('test_keys_reloads_total{result="refused"}') == 2
    logged = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(logged) == 2
    assert "keys.0.hashes: " in logged[0]
    assert KEY not in caplog.text
    await become("second")
    with pytest.raises(Unauthorized):
        world.caller()
    assert (world.metric("test_keys_stale"), world.metric("test_keys")) == (0, 1)
    await become("first")
    assert world.caller().name == "team-a"
    caplog.clear()
    (tmp_path / "first" / "keys.json").write_bytes(content())
    await file.look()
    (record,) = caplog.records
    assert (record.levelname, "every request is refused" in record.message) == ("WARNING", True)
    with pytest.raises(Unauthorized):
        world.caller()
