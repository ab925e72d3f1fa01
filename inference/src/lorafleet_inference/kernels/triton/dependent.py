"""Programmatic dependent launch: kernels whose programs begin before the launch ahead of them is done.

Such a kernel, DEPENDENT, calls `begin` once in every program, those that have nothing to do too. Before, it reads nothing that a launch
of the step writes, but for what docs/adr/0022 names, and stores nothing. NVIDIA's GPUs have it from compute capability 9.0 on.
"""

from typing import Any

import triton
import triton.language as tl


@triton.jit
def begin():
    """Wait until the launches before are done and what they wrote is there; then let the next one begin.

    In this order, so that no more than two launches are at work, and one that is done says that all before it are.
    """
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


def constants(*, is_dependent: bool, begins_early: bool = True) -> dict[str, Any]:
    """Return what such a kernel is launched with. `begins_early`: before the launch ahead of it is done, if it is dependent at all."""
    return {"DEPENDENT": is_dependent} | ({"launch_pdl": True} if is_dependent and begins_early else {})
