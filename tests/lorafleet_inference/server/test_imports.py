"""The API process never holds torch: it must start fast and stay small beside the engine."""

import subprocess
import sys

PROGRAM = """
import sys
import lorafleet_inference.cli, lorafleet_inference.server.app
heavy = [name for name in ("torch", "peft", "triton", "transformers.modeling_utils") if name in sys.modules]
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_the_api_process_imports_no_torch() -> None:
    path = [entry for entry in sys.path if entry.endswith("src")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": ":".join(path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
