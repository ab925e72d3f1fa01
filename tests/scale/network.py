"""A network of the run's own: the API server takes no loopback address for an endpoint, and no port of the machine is to be taken."""

import os
import subprocess
import sys

NETWORK = "198.51.100.0/24"
"""Of pods: addresses that RFC 5737 keeps for documents, and of which all are this machine's in a namespace of its own."""
MARK = "LORAFLEET_SCALE_NETWORK"


def enter_own() -> None:
    """Begin this program anew in a network namespace in which all addresses of NETWORK are its own; needs root, or user namespaces."""
    if os.environ.get(MARK) == "1":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "route", "add", "local", NETWORK, "dev", "lo"], check=True)
        return
    way = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    environment = {**os.environ, MARK: "1"}
    arguments = [*way, sys.executable, *sys.orig_argv[1:]]
    os.execvpe(arguments[0], arguments, environment)
