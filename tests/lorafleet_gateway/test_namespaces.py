"""Several namespaces are followed: one that is refused costs itself only."""

from .conftest import NAMESPACE, World, eventually

OTHER = "other-team"
BOTH = (NAMESPACE, OTHER)
KINDS = ("loraadapters", "basemodeldeployments", "endpointslices")


async def served(world: World) -> None:
    world.adapter("dutch", namespace=OTHER)
    pod = await world.pod("p")
    for name in ("french", "dutch"):
        pod.hold(name)
    world.endpoints(pod)


def forbid(world: World) -> None:
    world.kube.refuses = {f"{OTHER}/{plural}": 403 for plural in KINDS}


def refused(world: World) -> list[str]:
    """Namespaces that the metric names."""
    assert world.cluster is not None
    return [r.labels[0] for r in world.cluster.readings() if r.name == "lorafleet_gateway_namespace_refused"]


async def test_gateway_is_ready_beside_a_namespace_that_is_refused(world: World) -> None:
    """It is followed as soon as it may be."""
    await served(world)
    forbid(world)
    await world.open(watch_namespaces=BOTH)
    assert (await world.ask("french")).status_code == 200
    assert (await world.ask("nothing")).status_code == 404
    assert refused(world) == [OTHER]
    world.kube.refuses = {}
    await eventually("followed", lambda: world.knows("dutch"))
    assert (await world.ask("dutch")).status_code == 200
    await eventually("all of it", lambda: refused(world) == [])


async def test_what_was_known_of_a_namespace_stays_when_it_is_refused(world: World) -> None:
    await served(world)
    await world.open(watch_namespaces=BOTH)
    await eventually("known", lambda: world.knows("dutch"))
    forbid(world)
    world.kube.cut_watches()
    await eventually("refused", lambda: refused(world) == [OTHER])
    assert (await world.ask("dutch")).status_code == 200
    assert (await world.ask("nothing")).status_code == 404


async def test_gateway_is_not_ready_where_all_namespaces_are_refused(world: World) -> None:
    world.kube.refuses = dict.fromkeys(KINDS, 403)
    client = await world.open(waits=False, watch_namespaces=BOTH)
    await eventually("refused", lambda: refused(world) == sorted(BOTH))
    assert (await client.get("/ready")).status_code == 503
