"""The README's first screen, as it is written there."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from support.fleet import NAMESPACE, Fleet

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.cluster


def test_readme_opens_with_the_two_commands() -> None:
    """Whoever reads the first screen types what these tests type."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [line.split("#")[0].strip() for block in blocks[:1] for line in block.splitlines() if line.strip()]
    assert commands == ["make demo", "make test"]


def test_every_adapter_answered_as_only_it_can(fleet: Fleet) -> None:
    """Ten right answers, one more under traffic, nothing failed."""
    assert len(re.findall(r"\bright\b", fleet.transcript)) >= 11
    assert "WRONG" not in fleet.transcript
    assert re.search(r"meanwhile: [1-9]\d* requests to the other adapters, 0 failed, 0 wrong", fleet.transcript)


def test_a_bad_revision_was_refused_and_nobody_noticed(fleet: Fleet) -> None:
    """The last act says by the adapter's own status why, and leaves what was there before."""
    told = r'Ready=False VerifyFailed: revision (\w+): check four: expected an answer equal to "IV", and it is "quatre"'
    refused = re.search(told, fleet.transcript)
    assert refused is not None
    assert f"verify: revision {refused[1]} Failed, check four" in fleet.transcript
    assert re.search(r"meanwhile: [1-9]\d* requests to roman, 0 failed, 0 wrong; .* with MCMLXXXVII", fleet.transcript)
    roman = fleet.kube.get("lora", "roman", "-n", NAMESPACE)
    assert "verify" not in roman["spec"]
    stayed = re.search(r"Available=True: revision ([0-9a-f]{12}) goes on answering", fleet.transcript)
    assert stayed is not None
    assert refused[1] != stayed[1] == roman["status"]["stableRevision"] == roman["status"]["desiredRevision"]


def test_adapters_came_from_three_kinds_of_source(fleet: Fleet) -> None:
    """Volume, S3 and hub, each resolved to content."""
    items = fleet.kube.get("lora", "-n", NAMESPACE)["items"]
    resolved = [item for item in items if item["status"]["artifact"]["digest"].startswith("sha256:")]
    by_source = {item["spec"]["source"]["name"] for item in resolved}
    assert by_source == {"models", "bucket", "hub"}
    hub = next(item for item in items if item["spec"]["source"]["name"] == "hub")
    assert re.fullmatch(r"[0-9a-f]{40}", hub["status"]["artifact"]["resolvedRevision"])


def test_curl_line_of_the_farewell_works(fleet: Fleet) -> None:
    """A reader's next step is the printed curl line."""
    lines = [line.strip() for line in fleet.transcript.splitlines()]
    source = next(line for line in lines if line.startswith("source .local/env"))
    curl = next(line for line in lines if line.startswith("curl -s $LORAFLEET_URL"))
    script = f"{source}; {curl}; kubectl get lora -n {NAMESPACE} >&2"
    printed = subprocess.run(["bash", "-ec", script], cwd=ROOT, check=True, text=True, capture_output=True)
    assert json.loads(printed.stdout)["choices"][0]["message"]["content"].strip() == "MCMLXXXVII"
    assert "roman" in printed.stderr
