"""The command line of the local cluster."""

import argparse
import json
import os
import sys

from localcluster.cluster import Cluster
from localcluster.errors import LocalClusterError
from localcluster.paths import DEFAULT_NAME

COMMANDS = {
    "up": "start the cluster, or mend it; does nothing to one that is ready",
    "down": "remove the cluster; only the cache stays",
    "status": "say how it is; ends with 3 when it is not ready",
    "env": "print the shell lines that let kubectl and helm find it",
    "doctor": "say what this machine lacks for it",
    "deps": "prepare the Python packages for pods and print their folders",
    "exec": "run a command among the node's own processes (after --)",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    parser = argparse.ArgumentParser(prog="localcluster", description="A real one-node Kubernetes without Docker.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--name", default=DEFAULT_NAME, help=f"name of the cluster (default: {DEFAULT_NAME})")
        if name == "status":
            command.add_argument("--json", action="store_true", help="print it for programs")
        if name == "exec":
            command.add_argument("words", nargs="+", metavar="WORD", help="the command")
    parsed = parser.parse_args(arguments)
    try:
        return run_command(parsed)
    except LocalClusterError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("\nInterrupted; running the same command again goes on from here.", file=sys.stderr)
    return 1


def run_command(parsed: argparse.Namespace) -> int:
    """Carry out the parsed command."""
    cluster = Cluster(parsed.name)
    match parsed.command:
        case "up":
            cluster.up()
        case "down":
            cluster.down()
        case "doctor":
            cluster.check()
            print("This machine has what the local cluster needs.")
        case "env":
            print("\n".join(cluster.environment()))
        case "deps":
            cluster.prepare_dependencies()
            described = cluster.describe()
            print(
                json.dumps(
                    {key: described[key] for key in ("inference_dependencies", "operator_dependencies")}, indent=1
                )
            )
        case "exec":
            words = cluster.enter(*parsed.words)
            os.execvp(words[0], words)
        case "status":
            return print_status(cluster, as_json=parsed.json)
    return 0


def print_status(cluster: Cluster, *, as_json: bool) -> int:
    """Print what there is to know; 0 when the cluster is ready, else 3."""
    described = cluster.describe()
    if as_json:
        print(json.dumps(described, indent=1))
    else:
        for key, value in described.items():
            if key != "resident_bytes":
                print(f"{key + ':':<24}{value}")
        for component, num_bytes in described["resident_bytes"].items():
            print(f"{component + ':':<24}{num_bytes >> 20} MiB")
    return 0 if described["ready"] else 3
