"""Adapters whose weights are finite and whose numbers overflow when they are computed."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"


def wild_adapter(original: Path, folder: Path, *, factor: float = 1e25) -> Path:
    """Copy an adapter with B times a factor: the product of gate and up is infinite, and the next norm makes it NaN."""
    shutil.copytree(original, folder)
    tensors = load_file(folder / WEIGHTS)
    save_file({key: one * factor if "lora_B" in key else one for key, one in tensors.items()}, folder / WEIGHTS)
    return folder
