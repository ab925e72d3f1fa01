"""A process has a file for each connection that it takes, or takes fewer and says so."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from lorafleet_common.sockets import connections_with_files
soft, hard, wanted, each = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(connections_with_files(wanted, files_each=each), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "each", "taken", "files"),
    [
        (1000, 1000, 1, 500, 1000),
        (300, 1000, 1, 500, 756),
        (300, 1000, 2, 372, 1000),
        (300, 300, 1, 44, 300),
        (100, 200, 1, 1, 200),
    ],
)
def test_a_process_takes_as_many_connections_as_it_may_have_files(
    soft: int, hard: int, each: int, taken: int, files: int
) -> None:
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard), "500", str(each)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(taken), str(files)]
    assert ("--max-connections 500" in done.stderr) == (taken < 500)
