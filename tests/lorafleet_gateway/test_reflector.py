"""The gateway's picture follows a real HTTP API server through everything that watches suffer."""

from pathlib import Path

from lorafleet_common.kube.client import KubeApi, use_token_file
from lorafleet_common.kube.reflector import Reflector

from .conftest import NAMESPACE, World, eventually

WATCHED = ("basemodeldeployments", "loraadapters", "endpointslices")


def names(world: World) -> set[str | None]:
    assert world.cluster is not None
    return {model.name for model in world.cluster.directory.models()}


async def watching(world: World) -> None:
    await eventually("all watches stand", lambda: world.kube.num_watching == len(WATCHED))


async def test_events_are_followed(world: World) -> None:
    await world.open()
    world.adapter("german")
    await eventually("german", lambda: world.knows("german"))
    world.kube.delete("loraadapters", NAMESPACE, "german")
    await eventually("german is gone", lambda: not world.knows("german"))
    assert names(world) == {"numerals", "french"}


async def test_a_long_list_comes_in_pages(world: World) -> None:
    for number in range(1100):
        world.adapter(f"adapter-{number}")
    await world.open()
    assert len(names(world)) == 1102
    assert world.kube.num_requests("loraadapters", "continue=") == 4


async def test_a_cut_watch_goes_on_where_it_was(world: World) -> None:
    await world.open()
    await watching(world)
    world.kube.bookmark()
    bookmarked = world.kube.version
    await eventually("the bookmark arrived", lambda: all(r._version == bookmarked for r in reflectors(world)))
    num_lists = world.kube.num_requests("limit=")
    world.kube.cut_watches()
    world.adapter("german")
    await eventually("german", lambda: world.knows("german"))
    await watching(world)
    assert world.kube.num_requests("limit=") == num_lists
    assert world.kube.num_requests("loraadapters", f"resourceVersion={bookmarked}") == 1


async def test_too_late_lists_again_and_forgets_what_vanished_unseen(world: World) -> None:
    world.adapter("german")
    await world.open()
    await watching(world)
    world.kube.delete("loraadapters", NAMESPACE, "german", silently=True)
    world.adapter("italian")
    assert world.knows("german")
    world.kube.expire()
    await eventually("the list is taken in", lambda: not world.knows("german") and world.knows("italian"))
    world.adapter("dutch")
    await eventually("the watch stands again", lambda: world.knows("dutch"))


async def test_watches_that_the_server_ends_are_begun_again(world: World) -> None:
    await world.open()
    for name in ("a", "b", "c"):
        await watching(world)
        world.kube.end_watches()
        world.adapter(name)
        await eventually(name, lambda name=name: world.knows(name))
    assert world.kube.num_requests("limit=", "loraadapters") == 1


async def test_nothing_is_forgotten_while_the_api_server_is_away(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open()
    await watching(world)
    world.kube.is_down = True
    world.kube.cut_watches()
    await eventually("it is tried in vain", lambda: any(r.problem for r in reflectors(world)))
    assert (await world.ask("french")).status_code == 200
    assert world.client is not None
    assert (await world.client.get("/ready")).status_code == 200
    unknown = await world.ask("nobody")
    assert unknown.status_code == 503
    assert unknown.json()["error"]["code"] == "not_ready"
    world.kube.is_down = False
    world.adapter("german")
    await eventually("german", lambda: world.knows("german"))


async def test_missing_rights_are_named_by_ready(world: World) -> None:
    world.kube.refuses["loraadapters"] = 403
    client = await world.open(waits=False)
    await eventually("the refusal is known", lambda: any("forbidden" in r.problem for r in reflectors(world)))
    answer = await client.get("/ready")
    assert answer.status_code == 503
    assert "loraadapters is forbidden" in answer.json()["reason"]
    assert (await client.get("/health")).status_code == 200
    world.kube.refuses.clear()
    await eventually("ready", lambda: world.cluster is not None and world.cluster.unready_reason() is None)


async def test_only_the_given_namespaces_are_asked(world: World) -> None:
    world.adapter("elsewhere", namespace="other")
    await world.open(watch_namespaces=(NAMESPACE,))
    assert names(world) == {"numerals", "french"}
    assert all(f"/namespaces/{NAMESPACE}/" in request for request in world.kube.requests)


async def test_the_token_file_is_read_again(world: World, tmp_path: Path) -> None:
    """A rotated service account token is used by the next request; one that is being swapped leaves the last in use."""
    file = tmp_path / "token"
    file.write_text("first\n")
    configuration = world.kube.configuration
    use_token_file(configuration, file)
    api = KubeApi(configuration)
    try:
        await api.list("/apis/lorafleet.io/v1alpha1/loraadapters")
        file.write_text("second\n")
        await api.list("/apis/lorafleet.io/v1alpha1/loraadapters")
        file.unlink()
        await api.list("/apis/lorafleet.io/v1alpha1/loraadapters")
    finally:
        await api.close()
    assert world.kube.tokens == ["Bearer first", "Bearer second", "Bearer second"]


def reflectors(world: World) -> list[Reflector]:
    assert world.cluster is not None
    return world.cluster._reflectors
