"""Questions to a Prometheus: a small real server of its API, which answers, refuses, hangs and lies."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from lorafleet_common.sockets import bind, url_of
from lorafleet_operator.act.prometheus import Prometheus
from lorafleet_operator.decide.measured import Reading

SINCE = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@dataclass
class Server:
    """What it was asked, and what it answers by query."""

    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Query and authorization."""
    values: dict[str, str] = field(default_factory=dict)
    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        query = str(form["query"])
        assert form["timeout"] in ("10s", "0.5s")
        self.is_asked.set()
        self.asked.append((query, request.headers.get("authorization")))
        match query:
            case "hangs":
                await self.let_go.wait()
            case "moved":
                raise web.HTTPFound(f"{self.url}/elsewhere")
            case "refused":
                return web.json_response(
                    {"status": "error", "errorType": "bad_data", "error": "parse error"}, status=400
                )
            case "broken":
                return web.Response(status=502, text="<html>")
            case "no json":
                return web.Response(text="<html>")
            case "deep":
                return web.Response(body=b"[" * 60_000)
            case "endless":
                return web.Response(body=b" " * 10**6)
        series = [{"metric": {}, "value": [1.0, self.values[query]]}] if query in self.values else []
        return web.json_response({"status": "success", "data": {"resultType": "vector", "result": series}})


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server, app = Server(), web.Application()
    app.router.add_post("/prom/api/v1/query", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    listener = bind("127.0.0.1", 0, option="prometheus")
    await web.SockSite(runner, listener).start()
    server.url = f"{url_of(listener)}/prom"
    try:
        yield server
    finally:
        server.let_go.set()
        await runner.cleanup()


async def read(prometheus: Prometheus, queries: Mapping[str, str], since: datetime = SINCE) -> Mapping[str, Reading]:
    for _ in range(3000):
        if (found := prometheus.readings("uid", since, queries)) is not None:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError("no answer")


async def test_each_query_has_its_answer_or_says_why_not() -> None:
    async with serving() as server:
        prometheus = Prometheus(f"{server.url}/", query_seconds=0.5)
        server.values["up"] = "0.25"
        names = ("up", "none", "refused", "broken", "moved", "no json", "deep", "endless", "hangs")
        found = await read(prometheus, {name: name for name in names})
        assert found["up"] == Reading(0.25)
        assert found["none"] == Reading(None, "no series matches")
        assert found["refused"] == Reading(None, "Prometheus refuses it: parse error")
        assert found["broken"].problem == "Prometheus does not answer: ClientError it answers 502"
        assert found["moved"].problem == "Prometheus does not answer: ClientError it answers 302"
        assert found["no json"].problem == found["deep"].problem == "its answer is no Prometheus's"
        assert "longer than 65536 bytes" in found["endless"].problem
        assert "Prometheus does not answer: TimeoutError" in found["hangs"].problem
        assert sorted(query for query, _ in server.asked) == sorted(names)
        await prometheus.close()


async def test_answers_hold_for_a_while_and_for_their_window() -> None:
    async with serving() as server:
        prometheus = Prometheus(server.url)
        server.values["up"] = "1"
        for _ in range(3):
            assert await read(prometheus, {"q": "up"}) == {"q": Reading(1.0)}
        assert len(server.asked) == 1
        later = SINCE.replace(minute=1)
        assert await read(prometheus, {"q": "up"}, later) == {"q": Reading(1.0)}
        assert len(server.asked) == 2
        prometheus.keep([], ["uid"])
        assert await read(prometheus, {"q": "up"}, later) == {"q": Reading(1.0)}
        assert len(server.asked) == 3
        await prometheus.close()


async def test_what_nobody_wants_any_more_is_not_waited_for() -> None:
    async with serving() as server:
        prometheus = Prometheus(server.url)
        assert prometheus.readings("uid", SINCE, {"q": "hangs"}) is None
        await asyncio.wait_for(server.is_asked.wait(), 30)
        prometheus.keep([], ["uid"])
        assert prometheus.readings("uid", SINCE, {"q": "hangs"}) is None
        async with asyncio.timeout(5):
            await prometheus.close()


async def test_the_token_is_read_anew_each_time(tmp_path: Path) -> None:
    token = tmp_path / "token"
    async with serving() as server:
        prometheus = Prometheus(server.url, token_file=token)
        found = await read(prometheus, {"q": "up"})
        assert found["q"].problem == "the token for Prometheus cannot be read: FileNotFoundError"
        token.write_bytes(b"\xff\xfe")
        found = await read(prometheus, {"q": "up"}, SINCE.replace(minute=9))
        assert found["q"].problem == "the token for Prometheus cannot be read: UnicodeDecodeError"
        assert server.asked == []
        for minute, word in enumerate(("first", "second"), 1):
            token.write_text(f"{word}\n")
            await read(prometheus, {"q": "up"}, SINCE.replace(minute=minute))
        assert [authorization for _, authorization in server.asked] == ["Bearer first", "Bearer second"]
        await prometheus.close()


async def test_where_none_is_there_every_query_says_so() -> None:
    prometheus = Prometheus("")
    found = await read(prometheus, {"q": "up"})
    assert "installed without a Prometheus" in found["q"].problem
    await prometheus.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://127.0.0.1:9"])
async def test_one_that_is_away_is_no_answer(url: str) -> None:
    prometheus = Prometheus(url)
    found = await read(prometheus, {"q": "up"})
    assert found["q"].value is None
    assert found["q"].problem.startswith("Prometheus does not answer: ClientConnector")
    await prometheus.close()
