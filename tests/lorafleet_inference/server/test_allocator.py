"""What large texts took in the threads of the API process is the system's again when they are gone."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, threading

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

if sys.argv[1] == "set":
    from lorafleet_inference.server.allocator import give_back_large_blocks
    give_back_large_blocks()
before, kept = resident(), []
meet = threading.Barrier(8)

def work():
    meet.wait()
    for size in (16, 12, 12):
        text = b"x" * (size << 20)
        kept.append(b"y" * 100_000)
        meet.wait()
        del text
        meet.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
for one in threads:
    one.start()
for one in threads:
    one.join()
print(resident() - before)
"""


def grown_mib(how: str) -> int:
    """Run eight threads that make and forget texts of up to 16 MiB; return by how many MiB the process has grown."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_large_blocks_go_back_to_the_system() -> None:
    left = grown_mib("unset")
    assert grown_mib("set") < min(20, left), f"without it {left} MiB are left"
