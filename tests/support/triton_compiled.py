"""Kernels compiled for GPUs that are not here, by the calls that the engine makes, and read off their machine code.

Not in a process with TRITON_INTERPRET: Triton binds itself to its interpreter or to its compiler when it is imported.
"""

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from lorafleet_inference.kernels.triton.launch import launching

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "compiled"
"""Beside Triton's own cache of what it has compiled."""
SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that one program may take, by architecture."""
TENSOR_CORES = {"HMMA": "mma", "HGMMA": "wgmma", "UTCHMMA": "tcgen05"}


class AbsentDriver:
    """What Triton asks of a driver before it compiles; nothing can be launched."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_device(self) -> int:
        """Each architecture has a cache of compiled kernels of its own."""
        return self._arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    class utils:
        @staticmethod
        def get_device_properties(device: int) -> dict[str, int]:
            return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}


@dataclass(frozen=True)
class Built:
    """A compiled kernel."""

    name: str
    registers: int
    stack_bytes: int
    """Local memory of a thread: what was spilled from registers."""
    shared_bytes: int
    instructions: dict[str, int]
    """By name; loads and stores of device memory by name and width, as LDG.U16."""

    @property
    def tensor_cores(self) -> set[str]:
        return {kind for name, kind in TENSOR_CORES.items() if self.instructions.get(name)}


def _built(name: str, kernel: Any) -> Built:
    """As `_read`, which takes a second of a core: what it found is kept by the machine code and by how it is read."""
    code: bytes = kernel.asm["cubin"]
    key = hashlib.sha256(Path(__file__).read_bytes() + code).hexdigest()
    kept = CACHE / f"{key}.json"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = kept.with_suffix(f".{os.getpid()}")
        made.write_text(json.dumps(asdict(_read(name, kernel))))
        made.replace(kept)
    return Built(**{**json.loads(kept.read_text()), "name": name, "shared_bytes": kernel.metadata.shared})


def _read(name: str, kernel: Any) -> Built:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([BIN / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None
    instructions: Counter[str] = Counter()
    for line in re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(.*?);", code, re.MULTILINE):
        words = line.split()
        name_, *parts = (words[1] if words[0].startswith("@") else words[0]).split(".")
        instructions[name_] += 1
        if name_ in {"LDG", "STG"}:
            width = next((part for part in parts if part in {"U8", "U16", "64", "128"}), "32")
            instructions[f"{name_}.{width}"] += 1
    return Built(name, int(found[1]), int(found[2]), kernel.metadata.shared, dict(instructions))


@contextmanager
def compiling(arch: int) -> Iterator[list[Built]]:
    """While this is open, tensors are on a GPU that is not there, and what is launched on them is compiled."""
    built: list[Built] = []

    def compile_(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any]) -> None:
        built.append(_built(kernel.fn.__name__, kernel.warmup(*args, grid=grid, **constants)))

    driver.set_active(AbsentDriver(arch))
    with FakeTensorMode(), launching(compile_):
        yield built
