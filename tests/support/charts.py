"""Charts as helm renders them."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "lorafleet"
CRD_CHART = ROOT / "charts" / "lorafleet-crds"
KUBE_VERSION = "1.35"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Helm:
    """The program, without a cluster."""

    path: Path

    def run(self, *arguments: str, values: Json | None = None) -> subprocess.CompletedProcess[str]:
        """Run helm with values on its standard input."""
        given = [] if values is None else ["--values", "-"]
        environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
        return subprocess.run(
            [str(self.path), *arguments, *given],
            input=None if values is None else yaml.safe_dump(values),
            check=False,
            text=True,
            capture_output=True,
            env=environment,
        )

    def lint(self, chart: Path, values: Json | None = None) -> str:
        """Return what `helm lint --strict` says of a chart that is well."""
        done = self.run("lint", "--strict", "--kube-version", KUBE_VERSION, str(chart), values=values)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def text(self, values: Json | None = None, *, chart: Path = CHART, release: str = "lorafleet") -> str:
        """Return the rendered chart as text."""
        done = self._template(chart, release, values)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def render(self, values: Json | None = None, *, chart: Path = CHART, release: str = "lorafleet") -> "Rendered":
        """Return the rendered chart's objects."""
        text = self.text(values, chart=chart, release=release)
        return Rendered([document for document in yaml.safe_load_all(text) if document])

    def refusal(self, values: Json) -> str:
        """Return what helm says of values that it must not take."""
        done = self._template(CHART, "lorafleet", values)
        assert done.returncode != 0, f"taken: {values}"
        return done.stderr

    def _template(self, chart: Path, release: str, values: Json | None) -> subprocess.CompletedProcess[str]:
        namespace = ("--namespace", "lorafleet-system")
        return self.run("template", release, str(chart), *namespace, "--kube-version", KUBE_VERSION, values=values)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Objects of a rendered chart."""

    objects: list[Json]

    def of(self, kind: str) -> list[Json]:
        """All of a kind."""
        return [item for item in self.objects if item["kind"] == kind]

    def one(self, kind: str, name: str) -> Json:
        """The one of that kind and name."""
        found = [item for item in self.of(kind) if item["metadata"]["name"] == name]
        assert len(found) == 1, (
            f"{len(found)} of {kind} {name}; there are {[(i['kind'], i['metadata']['name']) for i in self.objects]}"
        )
        return found[0]

    def pod(self, component: str) -> Json:
        """Spec of a component's pods."""
        spec: Json = self.one("Deployment", f"lorafleet-{component}")["spec"]["template"]["spec"]
        return spec

    def container(self, component: str) -> Json:
        """Its container."""
        container: Json = self.pod(component)["containers"][0]
        return container


def nested(name: str, value: Any) -> Json:
    """`a.b` -> {a: {b: value}}."""
    for key in reversed(name.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def merged(*parts: Json) -> Json:
    """Values as helm merges them: maps by key, everything else replaced."""
    result: Json = {}
    for part in parts:
        for key, value in part.items():
            both_maps = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both_maps else value
    return result
