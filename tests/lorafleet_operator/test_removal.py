"""Uninstalling: what would be left is said before, and what the operator made for itself goes afterwards."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
import yaml
from support.simulated_fleet import BASE, CONFIG, NAMESPACE, SYSTEM, Fleet, simulated_fleet, until

from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.process.removal import clean_up, remaining

ME = f"{SYSTEM}/{CONFIG.lease}"


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


async def clean(fleet: Fleet) -> list[str]:
    names = {"lease": CONFIG.lease, "names": CONFIG.names, "key_secret": CONFIG.key_secret}
    return await clean_up(fleet.api, namespace=SYSTEM, **names)


async def test_what_is_left_is_named_and_keeps_the_key(fleet: Fleet) -> None:
    fleet.base()
    fleet.adapter("french")
    fleet.adapter("waiting", base={"name": "nowhere"})
    await fleet.operate()
    await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french"))
    left = await remaining(fleet.api, ME, ())
    assert left.bases == (f"{NAMESPACE}/{BASE}",)
    assert left.adapters == (f"{NAMESPACE}/french",), "one without the finalizer goes by itself"
    assert any("would never end" in line for line in left.lines())
    assert f"  {NAMESPACE}/french" in left.lines()
    assert (await remaining(fleet.api, ME, ("other",))).lines() == []
    assert (await remaining(fleet.api, "another/operator", ())).lines() == []
    await fleet.end(fleet.operators[0])
    assert "is removed" in (await clean(fleet))[0]
    assert fleet.kube.find("leases", SYSTEM, CONFIG.lease) is None
    assert fleet.kube.find("secrets", SYSTEM, CONFIG.key_secret) is not None


async def test_nothing_is_left_of_an_operator_that_is_removed_last(fleet: Fleet) -> None:
    fleet.base()
    fleet.adapter("french")
    await fleet.operate()
    await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french"))
    fleet.delete("french")
    fleet.kube.delete(Kind.BASE, NAMESPACE, BASE)
    await until("gone", lambda: fleet.is_gone("french"))
    assert (await remaining(fleet.api, ME, ())).lines() == []
    await fleet.end(fleet.operators[0])
    assert {line.split()[0] for line in await clean(fleet)} >= {"Lease", "Secret"}
    assert not [key for key in fleet.kube.objects if key[1] == SYSTEM]
    assert await clean(fleet) == [], "there is nothing left to remove"


async def test_deletion_ends_when_the_operator_was_scaled_to_zero_meanwhile(fleet: Fleet) -> None:
    """Base and adapters are deleted in either order while nobody looks; the operator comes back."""
    fleet.base()
    fleet.base("other")
    fleet.adapter("french")
    fleet.adapter("german", base={"name": "other"})
    await fleet.operate()
    await fleet.pod()
    await fleet.pod("other")
    await until("ready", lambda: fleet.is_ready("french", "german"))
    await fleet.end(fleet.operators[0])
    fleet.kube.delete(Kind.BASE, NAMESPACE, BASE)
    fleet.delete("french")
    fleet.delete("german")
    fleet.kube.delete(Kind.BASE, NAMESPACE, "other")
    await asyncio.sleep(0.1)
    assert not fleet.is_gone("french")
    await fleet.operate()
    await until("gone", lambda: fleet.is_gone("french") and fleet.is_gone("german"))


async def test_commands_of_the_hooks(fleet: Fleet, tmp_path: Path) -> None:
    """What the chart's Jobs run, as processes."""
    kubeconfig = tmp_path / "kubeconfig"
    document = {
        "clusters": [{"name": "c", "cluster": {"server": fleet.kube.url}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "x",
    }
    kubeconfig.write_text(yaml.safe_dump(document))
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}

    async def run(*arguments: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "lorafleet_operator", *arguments, env=environment, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        return process.returncode, printed.decode()

    fleet.base()
    status, printed = await run("remaining", f"--namespace={SYSTEM}")
    assert status == 1
    assert f"  {NAMESPACE}/{BASE}" in printed
    assert (await run("remaining", f"--namespace={SYSTEM}", "--warn")) == (0, printed)
    fleet.kube.delete(Kind.BASE, NAMESPACE, BASE)
    assert (await run("remaining", f"--namespace={SYSTEM}")) == (0, "nothing is left\n")
    assert (await run("clean-up", f"--namespace={SYSTEM}")) == (0, "")
    assert (await run("clean-up"))[0] == 2
