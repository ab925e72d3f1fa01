"""/v1/models, /metrics, and the pages that are generated from code."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from support.upstream_pods import REVISION, refusing

from lorafleet_gateway import config, metrics

from .conftest import World

ROOT = Path(__file__).parents[2]


async def test_models_of_the_whole_cluster(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    world.base("another")
    artifacts = {"artifact": {"rank": 8}, "stableArtifact": {"rank": 8, "invocationTokens": [7, 8]}}
    world.adapter("guest", namespace="other", status=artifacts)
    world.adapter("waiting", status={"stableRevision": None})
    world.adapter("loser", status={"servedName": None, "stableRevision": None})
    client = await world.open()
    document = (await client.get("/v1/models")).json()
    assert document["object"] == "list"
    assert [model["id"] for model in document["data"]] == ["another", "numerals", "french", "guest"]
    by_id = {model["id"]: model for model in document["data"]}
    assert by_id["french"] == {
        "id": "french",
        "object": "model",
        "created": 1767225602,
        "owned_by": "lorafleet",
        "root": "french",
        "parent": "numerals",
        "revision": REVISION,
        "max_model_len": 256,
        "invocation_tokens": None,
    }
    assert by_id["guest"]["invocation_tokens"] == [7, 8]
    assert by_id["numerals"]["root"] == "models/numerals"
    assert by_id["numerals"]["parent"] is None
    assert by_id["another"]["max_model_len"] is None
    assert (await client.get("/v1/models")).json() == document


async def test_one_model(world: World) -> None:
    world.adapter("waiting", status={"stableRevision": None})
    client = await world.open()
    assert (await client.get("/v1/models/french")).json()["id"] == "french"
    assert (await client.get("/v1/models/nobody")).status_code == 404
    assert (await client.get("/v1/models/waiting")).status_code == 503
    world.kube.holds_events = True
    world.adapter("german")
    assert (await client.get("/v1/models/german")).json()["parent"] == "numerals"


async def test_what_happens_is_counted(world: World) -> None:
    first, second = await world.pod("first"), await world.pod("second")
    first.hold("french")
    world.endpoints(first, second)
    await world.open()
    collector = metrics.ClusterCollector(world.cluster.readings)  # type: ignore[union-attr]
    metrics.REGISTRY.register(collector)
    try:
        before = await scrape(world)
        await world.ask()
        await world.ask("nobody")
        first.reply = refusing(503, "draining")
        await world.ask()
        after = await scrape(world)
    finally:
        metrics.REGISTRY.unregister(collector)

    def grown(name: str, **labels: str) -> float:
        key = (f"lorafleet_gateway_{name}", tuple(sorted(labels.items())))
        return after.get(key, 0) - before.get(key, 0)

    assert grown("requests_total", base="numerals", adapter="french", code="200", outcome="ok") == 2
    assert grown("requests_total", base="", adapter="", code="404", outcome="client_error") == 1
    assert grown("retries_total", base="numerals", reason="draining") == 1
    assert grown("routed_total", base="numerals", why="device") == 2
    assert grown("routed_total", base="numerals", why="unlisted") == 1
    assert grown("request_seconds_count", base="numerals") == 2
    assert grown("time_to_first_byte_seconds_count", base="numerals") == 2
    assert grown("lookups_total", result="missing") == 1
    assert after["lorafleet_gateway_endpoints", (("base", "numerals"), ("state", "ready"))] == 2
    assert after["lorafleet_gateway_adapters", (("base", "numerals"),)] == 1
    assert after["lorafleet_gateway_watch_last_heard_timestamp_seconds", (("kind", "loraadapters"),)] > 1.7e9
    assert after["lorafleet_gateway_ready", ()] == 1


async def scrape(world: World) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = (await world.client.get(world.metrics_url)).text  # type: ignore[union-attr]
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_the_options_of_the_readme_are_those_of_the_code() -> None:
    assert generated("gateway/README.md", "options") == config.describe()


def test_the_metrics_page_is_that_of_the_code() -> None:
    assert generated("docs/reference/gateway-metrics.md", "gateway-metrics") == metrics.describe()


def test_every_error_of_the_tree_is_explained() -> None:
    from lorafleet_gateway import errors

    page = (ROOT / "docs/reference/gateway.md").read_text()
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.RequestError)]
    statuses = {kind.status for kind in kinds}
    assert statuses == {int(status) for status in re.findall(r"^\| (\d{3}) \|", page, re.MULTILINE)}


def generated(page: str, name: str) -> str:
    text = (ROOT / page).read_text()
    found = re.search(rf"<!-- generated: {name} -->\n\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert found is not None, f"{page} has no table {name}"
    return found.group(1)


async def test_metrics_are_on_a_port_of_their_own(world: World) -> None:
    """They name all adapters of all tenants."""
    client = await world.open()
    assert (await client.get("/metrics")).status_code == 404
    answer = await client.get(world.metrics_url)
    assert answer.status_code == 200
    assert "lorafleet_gateway_ready" in answer.text
    assert (await client.get(world.metrics_url.replace("/metrics", "/v1/models"))).status_code == 404
    posted = await client.post(world.metrics_url)
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD")
