"""The module for the CUDA driver, which the image has built because it has no C compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
TOOL = ROOT / "tools" / "triton_driver.py"
STAND_IN = "import sys, pathlib, triton_driver; triton_driver.stand_in(pathlib.Path(sys.argv[1]))"
LOAD = """
import pathlib, sys
from lorafleet_inference.kernels.triton.driver import built_driver
from triton import knobs
from triton.backends.nvidia.driver import CudaUtils

with built_driver(pathlib.Path(sys.argv[1])):
    print("hook" if knobs.build.impl else "none", flush=True)
    utils = CudaUtils()
print(callable(utils.launch), knobs.build.impl)
"""


def environment(**changed: str) -> dict[str, str]:
    """A process's own Triton, which is no interpreter there."""
    paths = [ROOT / part / "src" for part in ("contract", "common", "inference")] + [ROOT / "tools"]
    kept = {name: value for name, value in os.environ.items() if name not in {"TRITON_INTERPRET", "CC"}}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, paths)), **changed}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the module, and one beside it with what stands for the node's libcuda."""
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run([sys.executable, TOOL, folder / "built"], env=environment(), check=True)
    (folder / "node").mkdir()
    subprocess.run([sys.executable, "-c", STAND_IN, folder / "node"], env=environment(), check=True)
    return folder


def load(folder: Path, driver: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Load the module as the first launch does, where no program is found."""
    node = str(driver / "node")
    env = environment(PATH="/nonexistent", LD_LIBRARY_PATH=node, TRITON_LIBCUDA_PATH=node, TRITON_CACHE_DIR=str(cache))
    return subprocess.run([sys.executable, "-c", LOAD, folder], env=env, check=False, text=True, capture_output=True)


def test_built_module_is_loaded_without_a_compiler(driver: Path, tmp_path: Path) -> None:
    done = load(driver / "built", driver, tmp_path)
    assert (done.returncode, done.stdout) == (0, "hook\nTrue None\n"), done.stderr


def test_without_it_triton_compiles_as_ever(driver: Path, tmp_path: Path) -> None:
    done = load(tmp_path / "empty", driver, tmp_path / "cache")
    assert (done.returncode, done.stdout) == (1, "none\n")
    assert "Failed to find C compiler" in done.stderr


def test_module_of_another_triton_is_left_alone(driver: Path, tmp_path: Path) -> None:
    (built,) = (driver / "built").iterdir()
    _, _, rest = built.name.partition("-")
    (tmp_path / f"cuda_utils-0.{rest}").write_bytes(built.read_bytes())
    done = load(tmp_path, driver, tmp_path / "cache")
    assert (done.returncode, done.stdout) == (1, "none\n")


def test_own_hook_stays(driver: Path) -> None:
    program = (
        "import pathlib, sys\nfrom triton import knobs\n"
        "from lorafleet_inference.kernels.triton.driver import built_driver\n"
        "own = knobs.build.impl = lambda *_: ''\n"
        "with built_driver(pathlib.Path(sys.argv[1])):\n    assert knobs.build.impl is own\n"
        "assert knobs.build.impl is own\n"
    )
    subprocess.run([sys.executable, "-c", program, driver / "built"], env=environment(), check=True)
