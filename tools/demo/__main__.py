"""`python3 tools/demo up|down`: first half of the demo, standard library only: environment and cluster, side by side."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.progress import DemoError, Progress, stop

ROOT = Path(__file__).resolve().parent.parent.parent
LOCALCLUSTER = ROOT / "tools" / "localcluster"
VENV_PYTHON = ROOT / ".venv" / "bin" / "python"


def main() -> None:
    """Parse and go."""
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__)
    parser.add_argument("command", choices=["up", "down"])
    parser.add_argument("--name", default="demo", help="name of the local cluster (default: demo)")
    parser.add_argument("--cluster", choices=["local", "current"], default="local")
    parser.add_argument(
        "--registry",
        default=os.environ.get("LORAFLEET_REGISTRY", "localhost/lorafleet"),
        help="of the images, with --cluster current",
    )
    parser.add_argument(
        "--tag", default=os.environ.get("LORAFLEET_TAG", "dev"), help="of the images, with --cluster current"
    )
    arguments = parser.parse_args()
    try:
        if arguments.command == "down":
            down(arguments)
        else:
            up(arguments)
    except DemoError as error:
        stop(str(error))
    except KeyboardInterrupt:
        stop("Interrupted. Running the same command again goes on from here.")


def up(arguments: argparse.Namespace) -> None:
    """Bring environment and cluster, then hand over to the half that needs them."""
    progress = Progress()
    if arguments.cluster == "local":
        tool(LOCALCLUSTER, "doctor", "--name", arguments.name)
        steps = {
            "Python environment": lambda: tool(ROOT / "tools" / "bootstrap.py"),
            "Kubernetes": lambda: tool(LOCALCLUSTER, "up", "--name", arguments.name),
        }
        progress.side_by_side(steps)
        description = json.loads(tool(LOCALCLUSTER, "status", "--name", arguments.name, "--json", capture=True))
    else:
        progress.side_by_side({"Python environment": lambda: tool(ROOT / "tools" / "bootstrap.py")})
        description = {"registry": arguments.registry, "tag": arguments.tag}
    description |= {"cluster": arguments.cluster, "name": arguments.name}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools"), "PYTHONWARNINGS": "ignore"}
    command = [
        str(VENV_PYTHON),
        "-m",
        "demo.fleet",
        "--profile",
        json.dumps(description),
        "--started",
        str(progress.started),
    ]
    raise SystemExit(subprocess.run(command, check=False, env=environment).returncode)


def down(arguments: argparse.Namespace) -> None:
    """Take away what `up` brought, except the cache."""
    if arguments.cluster == "local":
        tool(LOCALCLUSTER, "down", "--name", arguments.name)
        for path in (ROOT / ".local").glob(f"*{arguments.name}*"):
            path.unlink()
        if arguments.name == "demo":
            (ROOT / ".local" / "env").unlink(missing_ok=True)
        return
    for command in (
        ("kubectl", "delete", "--ignore-not-found", "-f", str(ROOT / "examples" / "numerals" / "adapters.yaml")),
        ("kubectl", "delete", "--ignore-not-found", "-f", str(ROOT / "examples" / "numerals" / "ordinals.yaml")),
        ("kubectl", "delete", "--ignore-not-found", "-f", str(ROOT / "examples" / "numerals" / "base.yaml")),
        ("kubectl", "delete", "--ignore-not-found", "namespace", "numerals"),
        ("helm", "uninstall", "lorafleet", "-n", "lorafleet-system", "--ignore-not-found"),
        ("helm", "uninstall", "lorafleet-crds", "-n", "lorafleet-system", "--ignore-not-found"),
    ):
        subprocess.run(command, check=True)


def tool(path: Path, *arguments: str, capture: bool = False) -> str:
    """Run one of the project's tools with this Python.

    Raises:
        DemoError: it failed; it has said why.
    """
    done = subprocess.run(
        [sys.executable, str(path), *arguments], check=False, text=True, stdout=subprocess.PIPE if capture else None
    )
    if done.returncode != 0:
        raise DemoError(
            f"{path.name} {' '.join(arguments)} failed; it says why above. Running the same command again is safe."
        )
    return done.stdout or ""


if __name__ == "__main__":
    main()
