"""What the engine launches compiles for GPUs that are not here, and needs there what it may."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from support.triton_compiled import SHARED_LIMIT, Built

ROOT = Path(__file__).resolve().parents[4]
FEW_ROWS = {"decode", "both", "shrink", "expand", "side_shrink", "side_expand", "embed"}
"""Kernels whose products have 16 rows, for which the large tensor cores are no gain."""
PRODUCTS = {*FEW_ROWS, "prefill"}
QUANTISED = {"multiply", "multiply_grouped", "bring_back"}
BETWEEN = {"add_norm", "gate", "rotate_write"}
LARGE = {80: "mma", 90: "wgmma", 100: "tcgen05"}
pytestmark = pytest.mark.slow


@cache
def compiled(arch: int) -> list[tuple[str, Built]]:
    """By a process of its own: this one has Triton's interpreter."""
    paths = [ROOT / part / "src" for part in ("contract", "common", "inference")] + [ROOT / "tests"]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    command = [sys.executable, str(Path(__file__).with_name("compiled.py")), str(arch)]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
    return [(case, Built(**fields)) for case, fields in json.loads(done.stdout)]


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_it_fits_without_spilled_registers(arch: int) -> None:
    told = compiled(arch)
    assert {built.name for _, built in told} == {
        *PRODUCTS,
        *BETWEEN,
        *QUANTISED,
        "affine",
        "write",
        "merge",
        "choose",
        "record",
    }
    assert {(case, built.name): built.stack_bytes for case, built in told if built.stack_bytes} == {}
    assert max(built.shared_bytes for _, built in told) <= SHARED_LIMIT[arch]


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_products_use_tensor_cores(arch: int) -> None:
    for case, built in compiled(arch):
        if built.name in PRODUCTS and "float32" not in case:
            large = built.name == "prefill" or "many tokens" in case
            assert built.tensor_cores == {LARGE[arch] if large else "mma"}, (case, built.name)
        if built.name in ("multiply", "multiply_grouped"):
            assert built.tensor_cores == {"mma"}, case


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_no_weight_and_no_key_is_loaded_by_itself(arch: int) -> None:
    """Sixteen bits at a time are what alibi's bias, a head's sink and the end of a vocabulary are read by: they are anywhere.

    So are the weights of heads' norms, which are few and the same for all tokens, and what an embedding's A has for a token: as many
    numbers as the rank.
    """
    for case, built in compiled(arch):
        if built.name in QUANTISED:  # scales and zeros, which are few, are anywhere
            asynchronous = built.instructions.get("LDGSTS")
            assert asynchronous or built.instructions.get("LDG.64") or built.instructions.get("LDG.128"), case
            continue
        if built.name == "choose":
            assert built.instructions.get("LDG.64") or built.instructions.get("LDG.128"), case
            continue
        if "KV in fp8" in case and built.name == "prefill":  # one of its loops loads two codes at a time
            assert built.instructions.get("LDGSTS"), case
            continue
        if built.name in BETWEEN:
            wide = sum(built.instructions.get(f"{kind}.{bits}", 0) for kind in ("LDG", "STG") for bits in (64, 128))
            assert wide, (case, built.name)
        if built.name != "embed" and "alibi" not in case and "sinks" not in case and "norms" not in case:
            assert not built.instructions.get("LDG.U16"), (case, built.name)
            assert built.name == "merge" or not built.instructions.get("STG.U16"), (case, built.name)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_what_begins_early_waits_and_lets_the_next_begin(arch: int) -> None:
    """As griddepcontrol is called in machine code; older architectures, float32, and kernels that nobody asks it of, have none of it."""
    seen = set()
    for case, built in compiled(arch):
        begins_early = (
            case.startswith("begins early") and arch >= 90 and built.name != "record" and "float32" not in case
        )
        found = tuple(bool(built.instructions.get(name)) for name in ("ACQBULK", "PREEXIT"))
        assert found == (begins_early, begins_early), (case, built.name)
        seen |= {built.name} if begins_early else set()
    assert seen == ({"shrink", "expand", "both", "add_norm", "gate"} if arch >= 90 else set())
