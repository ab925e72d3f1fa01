"""Triton's module for the CUDA driver, built beforehand where there is no C compiler."""

import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import triton
from triton import knobs

FOLDER = Path("/opt/lorafleet/triton")
"""Where the image has what tools/triton_driver.py built."""
MODULE = "cuda_utils"


def file_name() -> str:
    """Return the module's file name, which says for which Triton, Python and machine it is."""
    return f"{MODULE}-{triton.__version__}{sysconfig.get_config_var('EXT_SUFFIX')}"


@contextmanager
def built_driver(folder: Path = FOLDER) -> Iterator[None]:
    """While this is open, Triton takes its module from the folder instead of compiling it.

    Without a file for this Triton and this Python there, and where `knobs.build.impl` is set, nothing is changed.
    """
    path = folder / file_name()
    if knobs.build.impl is not None or not path.is_file():
        yield
        return

    def build(
        name: str,
        _src: str,
        _srcdir: str,
        _library_dirs: Sequence[str],
        _include_dirs: Sequence[str],
        _libraries: Sequence[str],
    ) -> str:
        if name != MODULE:
            raise RuntimeError(f"Triton wants {name} compiled, and only {MODULE} is built beforehand")
        return str(path)

    knobs.build.impl = build
    try:
        yield
    finally:
        knobs.build.impl = None
