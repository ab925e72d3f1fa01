"""Builds Triton's module for the CUDA driver into a folder, with a C compiler and without a GPU or its driver.

An image that has the file needs no compiler. It is linked to a stand-in for libcuda.so.1, which the node's library
replaces by its name when the module is loaded. It needs Python's headers and the Triton that will load the module.
"""

import argparse
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import triton
from triton import knobs
from triton.runtime.build import compile_so_from_file

BACKEND = Path(triton.__file__).parent / "backends" / "nvidia"


def stand_in(folder: Path) -> None:
    """Write a libcuda.so.1 that has every function of the driver that the module calls; each fails."""
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+", (BACKEND / "driver.c").read_text())))
    source = folder / "cuda.c"
    source.write_text("".join(f"int {name}(void) {{ return 999; }}\n" for name in names))
    library = folder / "libcuda.so.1"
    compiler = os.environ.get("CC") or shutil.which("gcc") or "clang"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-fno-builtin", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True
    )


def build(folder: Path) -> Path:
    """Build the module, with the compiler and the flags that Triton takes; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    # the name that lorafleet_inference.kernels.triton.driver looks for
    target = folder / f"cuda_utils-{triton.__version__}{sysconfig.get_config_var('EXT_SUFFIX')}"
    with tempfile.TemporaryDirectory() as scratch:
        stand_in(Path(scratch))
        knobs.cache.dir = str(Path(scratch) / "cache")
        built = compile_so_from_file(
            src_path=str(BACKEND / "driver.c"),
            name="cuda_utils",
            library_dirs=[scratch],
            include_dirs=[str(BACKEND / "include")],
            libraries=["libcuda.so.1"],
        )
        shutil.copyfile(built, target)
    target.chmod(0o755)
    return target


def main() -> None:
    """Parse and build."""
    parser = argparse.ArgumentParser(prog="tools/triton_driver.py", description=__doc__)
    parser.add_argument("folder", type=Path)
    print(build(parser.parse_args().folder))


if __name__ == "__main__":
    main()
