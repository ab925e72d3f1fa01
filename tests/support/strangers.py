"""schemathesis against a running API: requests made of the OpenAPI document that is served, and answers held against it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "unsupported_method", "allow_header_conformance", "headers_are_described"),
)


EXAMPLES = os.environ.get("LORAFLEET_TEST_EXAMPLES", "")
"""Requests of each operation, where a run is to go deeper than `make test` does."""
FEW = 8


def ask(url: str, names: Iterable[str], *, seed: int = 12) -> subprocess.CompletedProcess[str]:
    """Ask every operation about many things; `names` are served. The same seed asks the same."""
    phases = "examples,coverage,fuzzing" if EXAMPLES else "fuzzing"  # the edges of each field are thousands
    command = [
        *(str(Path(sys.executable).with_name("st")), "--no-color", "run", f"{url}/openapi.json"),
        *("--phases", phases, "--checks", ",".join(CHECKS), "--warnings", "off", "--output-truncate", "false"),
        *("--seed", str(seed), "--generation-deterministic", "--max-examples", EXAMPLES or str(FEW)),
        *("--suppress-health-check", "all", "--continue-on-failure", "--request-timeout", "60"),
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "PYTHONPATH": str(ROOT / "tests"),
        "SCHEMATHESIS_HOOKS": "support.api_hooks",
        "LORAFLEET_TEST_NAMES": ",".join(names),
    }
    with tempfile.TemporaryDirectory(prefix="lorafleet-strangers-") as folder:  # it leaves files of what failed
        return subprocess.run(
            command, check=False, capture_output=True, text=True, env=environment, cwd=folder, timeout=7200
        )
