"""kubectl and helm of the cluster at hand, as functions."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.progress import DemoError


def condition(item: dict[str, Any], kind: str) -> dict[str, Any]:
    """The condition of that type of a resource, or nothing."""
    return next((entry for entry in item.get("status", {}).get("conditions", []) if entry["type"] == kind), {})


@dataclass(frozen=True, slots=True)
class Kube:
    """A cluster that answers: its two programs and its kubeconfig (None: what kubectl finds by itself)."""

    kubectl_path: str
    helm_path: str
    kubeconfig: Path | None

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl and return its stdout.

        Raises:
            DemoError: it failed and `check` is set; carries what it printed.
        """
        return self._run(self.kubectl_path, *arguments, stdin=stdin, check=check)

    def helm(self, *arguments: str) -> str:
        """Run helm and return its stdout."""
        return self._run(self.helm_path, *arguments)

    def get(self, *arguments: str) -> Any:
        """Return `kubectl get … -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, manifest: str) -> None:
        """Server-side apply of YAML text."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest)

    def _run(self, *command: str, stdin: str | None = None, check: bool = True) -> str:
        environment = dict(os.environ)
        if self.kubeconfig is not None:
            environment["KUBECONFIG"] = str(self.kubeconfig)
        done = subprocess.run(command, check=False, text=True, input=stdin, capture_output=True, env=environment)
        if check and done.returncode != 0:
            raise DemoError(
                f"{Path(command[0]).name} {' '.join(command[1:])}\n{done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout
