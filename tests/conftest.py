"""Fixtures that more than one package's tests share."""

import gc
import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.fleet import diagnose
from demo.profiles import load_profile
from hypothesis import HealthCheck, settings
from support.cpu_kernels import KERNELS, compile_meanwhile
from support.file_turns import TABLE, ByFile, read_table
from support.fleet import Fleet
from xdist.remote import Producer

if os.environ.get("LORAFLEET_TEST_DEVICE") != "cuda" and not Path("/dev/nvidiactl").exists():
    # without a GPU kernels run in Triton's interpreter, and Triton binds itself to it or to the compiler when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

os.environ["NUMBA_CACHE_DIR"] = str(KERNELS)  # of what tests start, too
ROOT = Path(__file__).resolve().parent.parent
# a shared machine may be slow: time says nothing about an example; what CI has passed, it passes again
settings.register_profile(
    "house",
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("house")
CLUSTER = os.environ.get("LORAFLEET_TEST_CLUSTER", "test")
"""A cluster of its own beside the demo's; set LORAFLEET_TEST_KEEP to leave it running for the next run."""


STARTING_PROGRAMS = tuple(
    f"tests/{name}"
    for name in (
        "benchmarks/test_api_process.py",
        "lorafleet_common/test_early_signals.py",
        "lorafleet_gateway/test_clients.py",
        "lorafleet_gateway/test_life.py",
        "lorafleet_gateway/test_real_pods.py",
        "lorafleet_inference/adapters/test_oci.py",
        "lorafleet_inference/adapters/test_sources.py",
        "lorafleet_inference/engine/test_client.py",
        "lorafleet_inference/engine/test_host_processes.py",
        "lorafleet_inference/engine/test_hosts.py",
        "lorafleet_inference/engine/test_rank_adapters.py",
        "lorafleet_inference/engine/test_rank_lost.py",
        "lorafleet_inference/engine/test_rank_plans.py",
        "lorafleet_inference/engine/test_rank_processes.py",
        "lorafleet_inference/engine/test_rank_quantized.py",
        "lorafleet_inference/engine/test_ranks.py",
        "lorafleet_inference/pod/",
        "lorafleet_inference/server/test_logs.py",
        "lorafleet_inference/test_model_bucket.py",
        "lorafleet_inference/test_model_cache.py",
        "lorafleet_inference/text/test_workers.py",
        "lorafleet_operator/test_removal.py",
        "numerals/test_served.py",
    )
)
"""Their tests, and those of the cluster, fail when they have failed twice; the first time is in the summary."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """What starts the processes of a run also compiles, meanwhile, what they will need when they have found their tests."""
    if session.config.getoption("numprocesses", None) and not hasattr(session.config, "workerinput"):
        compiling = compile_meanwhile()
        session.config.add_cleanup(lambda: compiling.wait() and None)


def pytest_collectstart() -> None:
    """While tests are read, nearly nothing becomes garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported never does: it is looked through no more."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """At the end of the process it does, or libraries in C say what has leaked."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """How tests are given out to processes, whatever `--dist` says."""
    return ByFile(config, log, read_table(TABLE.read_text()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cluster tests last: what is cheap fails first. Of several processes one begins with them."""
    for item in items:
        if item.get_closest_marker("cluster") or item.nodeid.startswith(STARTING_PROGRAMS):
            item.add_marker(pytest.mark.flaky(reruns=1))
    items.sort(key=lambda item: item.get_closest_marker("cluster") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is drawn without a seed is the same in each run."""
    random.seed(item.nodeid)


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """What the README's first command leaves running, in a cluster of the tests' own."""
    if not os.environ.get("LORAFLEET_TEST_KEEP"):  # an interrupted run, perhaps of another checkout, may have left one
        subprocess.run(["make", "--silent", "demo-down", f"NAME={CLUSTER}"], cwd=ROOT, check=True)
    command = ["make", "demo", f"NAME={CLUSTER}"]
    done = subprocess.run(command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, f"make demo NAME={CLUSTER} failed:\n{done.stdout}"
    command = [sys.executable, "tools/localcluster", "status", "--name", CLUSTER, "--json"]
    status = json.loads(subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout)
    profile = load_profile({**status, "cluster": "local", "name": CLUSTER})
    env_file = ROOT / ".local" / ("env" if CLUSTER == "demo" else f"env-{CLUSTER}")
    lines = shlex.split(env_file.read_text())
    url = next(word.removeprefix("LORAFLEET_URL=") for word in lines if word.startswith("LORAFLEET_URL="))
    yield Fleet(profile.kube, url, done.stdout)
    if not os.environ.get("LORAFLEET_TEST_KEEP"):
        subprocess.run(["make", "demo-down", f"NAME={CLUSTER}"], cwd=ROOT, check=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failing cluster test prints what an engineer would look at first."""
    report = yield
    running = getattr(item, "funcargs", {}).get("fleet")
    if report.when == "call" and report.failed and isinstance(running, Fleet):
        report.sections.append(("the cluster", diagnose(running.kube)))
    return report
