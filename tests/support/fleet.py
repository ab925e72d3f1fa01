"""A fleet on the local cluster as cluster tests see it: what `make demo` leaves running."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from demo.asking import Answer, Traffic, ask_each, keep_asking
from demo.kube import Kube
from support.waiting import wait_for

NAMESPACE = "numerals"
SYSTEM = "lorafleet-system"


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running fleet: its cluster and its gateway."""

    kube: Kube
    url: str
    transcript: str
    """What the demo printed."""

    def ask(self, model: str, number: int) -> Answer:
        """One question through the gateway."""
        return asyncio.run(ask_each(self.url, [model], number))[0]

    @contextmanager
    def traffic(self, models: list[str]) -> Iterator[Traffic]:
        """Ask the models in the background while the block runs; the tally is complete when it ends."""
        tally = Traffic()
        loop = asyncio.new_event_loop()
        enough = asyncio.Event()

        def run() -> None:
            tally.answers.extend(loop.run_until_complete(keep_asking(self.url, models, enough)).answers)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield tally
        finally:
            loop.call_soon_threadsafe(enough.set)
            thread.join()
            loop.close()

    def adapter(self, name: str, source: dict[str, str], *, check: bool = True, **spec: Any) -> str:
        """Apply a LoraAdapter on the numerals base."""
        manifest = {
            "apiVersion": "lorafleet.io/v1alpha1",
            "kind": "LoraAdapter",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"baseModelRef": {"name": "numerals"}, "source": source, **spec},
        }
        return self.kube.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(manifest), check=check)

    def delete(self, name: str) -> None:
        """Delete a LoraAdapter and wait until it is gone."""
        self.kube.kubectl("delete", "lora", name, "-n", NAMESPACE, "--timeout=60s")

    def status(self, name: str) -> dict[str, Any]:
        """Status of a LoraAdapter."""
        status: dict[str, Any] = self.kube.get("lora", name, "-n", NAMESPACE).get("status", {})
        return status

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """A condition of a LoraAdapter; empty when it has none of that type."""
        return next((c for c in self.status(name).get("conditions", []) if c["type"] == kind), {})

    def wait_condition(
        self, name: str, kind: str, status: str, *, reason: str | None = None, timeout_seconds: float = 60
    ) -> dict[str, Any]:
        """Wait for a condition, judged at the current generation."""

        def look() -> dict[str, Any] | None:
            item = self.kube.get("lora", name, "-n", NAMESPACE)
            found = next((c for c in item.get("status", {}).get("conditions", []) if c["type"] == kind), {})
            current = item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"]
            wanted = found.get("status") == status and reason in (None, found.get("reason"))
            return found if current and wanted else None

        try:
            return wait_for(f"lora/{name} {kind}={status} {reason or ''}", look, timeout_seconds=timeout_seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{json.dumps(self.status(name), indent=1)}") from None

    def engine_pods(self) -> dict[str, dict[str, Any]]:
        """Engine pods by name, those being deleted left out."""
        pods = self.kube.get("pods", "-n", NAMESPACE, "-l", "lorafleet.io/base")["items"]
        return {pod["metadata"]["name"]: pod for pod in pods if "deletionTimestamp" not in pod["metadata"]}
