"""What a name means, and how a request with a name that means nothing yet is answered."""

import asyncio
from collections.abc import Awaitable, Callable

from lorafleet_common.kube.errors import KubeUnavailable
from lorafleet_gateway.cluster.lookup import BURST, FORGET_SECONDS, MAX_REMEMBERED, Lookups

from .conftest import NAMESPACE, REVISION, World, eventually

NEW_REVISION = "b" * 12
STALLED = {"type": "Stalled", "status": "True", "reason": "RankTooHigh", "message": "rank 128 is over 64"}
TIMES = {"lastTransitionTime": "2026-01-01T00:00:00Z"}


def not_ready(reason: str, message: str, *, stalled: bool = False) -> list[dict[str, str]]:
    ready = {"type": "Ready", "status": "False", "reason": reason, "message": message, **TIMES}
    return [ready, *([{**STALLED, "reason": reason, "message": message, **TIMES}] if stalled else [])]


async def code_of(world: World, model: str) -> tuple[int, str]:
    answer = await world.ask(model)
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_name_that_nobody_has(world: World) -> None:
    await world.open()
    answer = await world.ask("nobody")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "not_found_error")
    assert world.kube.num_requests("fieldSelector=status.servedName%3Dnobody") == 2
    await world.ask("nobody")
    assert world.kube.num_requests("fieldSelector=status.servedName%3Dnobody") == 2


async def test_names_that_no_resource_can_have_are_not_looked_up(world: World) -> None:
    await world.open()
    for name in ("No Such", "a,status.servedName=french", "x" * 254, "ü", "a/../b", "/a", "a//b"):
        assert await code_of(world, name) == (404, "model_not_found")
    assert world.kube.num_requests("fieldSelector") == 0


async def test_the_first_request_does_not_race_with_the_watch(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    world.kube.holds_events = True
    world.adapter("german")
    assert (await world.ask("german")).status_code == 200
    world.base("second")
    assert await code_of(world, "second") == (503, "not_ready")
    world.kube.release_events()
    world.kube.delete("loraadapters", NAMESPACE, "german")
    await eventually("german is gone", lambda: not world.knows("german"))
    assert await code_of(world, "german") == (404, "model_not_found")


async def test_an_adapter_that_became_ready_unseen_is_looked_up_too(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    conditions = not_ready("Loading", "revision x is ready on 0 of 1 pods")
    world.adapter("german", status={"stableRevision": None, "conditions": conditions})
    await world.open()
    world.kube.holds_events = True
    world.adapter("german")
    assert (await world.ask("german")).status_code == 200


async def test_an_adapter_on_its_way(world: World) -> None:
    world.adapter("german", status={"stableRevision": None, "conditions": not_ready("Resolving", "a pod is at it")})
    await world.open()
    answer = await world.ask("german")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "adapter_loading"
    assert "Resolving: a pod is at it" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) > 0


async def test_an_adapter_that_was_refused(world: World) -> None:
    conditions = not_ready("RankTooHigh", "rank 128 is over 64", stalled=True)
    world.adapter("german", status={"stableRevision": None, "conditions": conditions})
    await world.open()
    answer = await world.ask("german")
    assert answer.status_code == 424
    assert answer.json()["error"]["code"] == "adapter_failed"
    assert "RankTooHigh: rank 128 is over 64" in answer.json()["error"]["message"]


async def test_an_adapter_that_is_late_may_still_come(world: World) -> None:
    """Its rollout is reported as stalled, and nothing was refused: clients are told to try again."""
    conditions = not_ready("ProgressDeadlineExceeded", "p1: Loading", stalled=True)
    world.adapter("german", status={"stableRevision": None, "conditions": conditions})
    await world.open()
    answer = await world.ask("german")
    assert answer.status_code == 503
    assert "ProgressDeadlineExceeded: p1: Loading" in answer.json()["error"]["message"]


async def test_a_refused_new_revision_leaves_the_stable_one_answering(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    world.adapter("french", status={"conditions": not_ready("RankTooHigh", "no", stalled=True)})
    await world.open()
    assert (await world.ask("french")).status_code == 200


async def test_a_loser_of_a_name_is_nobody(world: World) -> None:
    world.adapter("german", status={"servedName": None, "stableRevision": None})
    await world.open()
    assert await code_of(world, "german") == (404, "model_not_found")


async def test_while_a_name_moves_the_oldest_has_it(world: World) -> None:
    old, new = await world.pod("old"), await world.pod("new")
    world.base("second")
    world.endpoints(old)
    world.endpoints(new, base="second")
    world.adapter("twice", metadata={"creationTimestamp": "2026-01-02T00:00:00Z"}, base="second")
    world.adapter("once", status={"servedName": "twice"})
    await world.open()
    assert (await world.ask("twice")).json() == {"pod": "old"}
    world.kube.put("loraadapters", NAMESPACE, "once", metadata={"deletionTimestamp": "2026-01-03T00:00:00Z"})
    await eventually("the younger has it", lambda: world.cluster.directory.target("twice").base_name == "second")  # type: ignore[union-attr]
    assert (await world.ask("twice")).json() == {"pod": "new"}


async def test_an_adapter_that_is_being_deleted_is_gone_at_once(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    assert (await world.ask("french")).status_code == 200
    world.kube.put("loraadapters", NAMESPACE, "french", metadata={"deletionTimestamp": "2026-01-03T00:00:00Z"})
    await eventually("french is gone", lambda: not world.knows("french"))
    assert await code_of(world, "french") == (404, "model_not_found")


async def test_an_adapter_of_another_namespace(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    world.adapter("guest", namespace="other")
    await world.open()
    assert (await world.ask("guest")).status_code == 200


async def test_no_ready_pod(world: World) -> None:
    pod = await world.pod("one")
    await world.open()
    for _ in range(2):
        answer = await world.ask()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) > 0
        world.endpoints(pod, ready=False)
        await eventually("the pod is known", lambda: world.num_reachable() == 1)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def counting(found: int = 0) -> tuple[list[str], Callable[[str], Awaitable[int]]]:
    asked: list[str] = []

    async def find(name: str) -> int:
        asked.append(name)
        await asyncio.sleep(0)
        return found

    return asked, find


async def test_one_look_up_for_many_requests_and_for_a_while() -> None:
    asked, find = counting()
    clock = Clock()
    lookups = Lookups(find, clock)
    assert all(await asyncio.gather(*(lookups.look_up("a") for _ in range(50))))
    assert asked == ["a"]
    clock.now += FORGET_SECONDS + 0.01
    assert await lookups.look_up("a")
    assert asked == ["a", "a"]


async def test_made_up_names_are_no_load_on_the_api_server() -> None:
    asked, find = counting()
    clock = Clock()
    lookups = Lookups(find, clock)
    for number in range(500):
        answered = await lookups.look_up(f"name-{number}")
        assert answered == (number < BURST), "beyond the limit nothing is known"
    assert len(asked) == BURST
    clock.now += 0.5
    for number in range(500, 1000):
        await lookups.look_up(f"name-{number}")
    assert len(asked) == BURST + 10


async def test_what_is_remembered_is_bounded() -> None:
    _, find = counting()
    clock = Clock()
    lookups = Lookups(find, clock)
    for number in range(2 * MAX_REMEMBERED):
        clock.now += 0.0001  # slower than tokens come, faster than names are forgotten
        lookups._tokens = BURST
        await lookups.look_up(f"name-{number}")
    assert len(lookups._done) == MAX_REMEMBERED


async def test_a_failed_look_up_is_remembered_as_failed() -> None:
    async def find(name: str) -> int:
        raise KubeUnavailable(503, "", "away")

    lookups = Lookups(find, Clock())
    assert not await lookups.look_up("a")
    assert not await lookups.look_up("a")


async def test_names_as_people_write_them(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    for number, name in enumerate(("acme/Llama-3_sql:v2", "sql_lora", "a" * 253)):
        world.kube.holds_events = True
        world.adapter(f"adapter-{number}", status={"servedName": name})
        assert (await world.ask(name)).status_code == 200, "looked up before the watch tells"
        world.kube.release_events()
        world.kube.holds_events = False
        assert world.client is not None
        for path in (name, name.replace("/", "%2F")):
            answer = await world.client.get(f"/v1/models/{path}")
            assert (answer.status_code, answer.json()["id"]) == (200, name)


async def test_a_revision_in_the_name_is_as_good_as_in_the_header(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    before = [{"revision": NEW_REVISION, "since": "2026-01-01T00:00:00Z"}]
    world.adapter("named", status={"servedName": "acme/sql", "history": before})
    await world.open()
    assert (await world.ask(f"acme/sql@{NEW_REVISION}")).status_code == 200
    assert pod.received[-1].headers["x-lorafleet-revision"] == NEW_REVISION
    same = {"x-lorafleet-revision": NEW_REVISION}
    assert (await world.ask(f"acme/sql@{NEW_REVISION}", headers=same)).status_code == 200
    for model in ("acme/sql@", "acme/sql@newest", f"acme/sql@{REVISION}", f"numerals@{REVISION}"):
        answer = await world.ask(model, headers=same)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model"), model
    assert await code_of(world, f"nobody@{REVISION}") == (404, "model_not_found")
