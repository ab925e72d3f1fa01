"""Streams, events, graphs, pinned memory and whatever else CUDA has come from the device's interface, and from nowhere else."""

import ast
from collections.abc import Iterator
from pathlib import Path

import lorafleet_inference

PACKAGE = Path(lorafleet_inference.__file__).parent
CUDA = "device/cuda.py"
OF_TORCH = {"cuda", "Stream", "Event", "accelerator", "cudart"}
ANYWHERE = {"pin_memory", "record_stream", "wait_stream", "wait_event", "current_stream"}
KEYWORDS = {"pin_memory", "non_blocking"}


def asked(source: str) -> Iterator[str]:
    """What of a file's text goes past the interface."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr=name) if name in OF_TORCH:
                yield f"{node.lineno}: torch.{name}"
            case ast.Attribute(attr=name) if name in ANYWHERE:
                yield f"{node.lineno}: .{name}"
            case ast.keyword(arg=str(name)) if name in KEYWORDS:
                yield f"{node.value.lineno}: {name}="
            case ast.Import(names=names) if any(one.name.startswith("torch.cuda") for one in names):
                yield f"{node.lineno}: import torch.cuda"
            case ast.ImportFrom(module=str(module)) if module.startswith("torch.cuda"):
                yield f"{node.lineno}: from {module}"
            case ast.ImportFrom(module="torch", names=names) if OF_TORCH & {one.name for one in names}:
                yield f"{node.lineno}: from torch"


def test_nobody_but_the_cuda_form_asks_cuda() -> None:
    files = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert list(asked(files.pop(CUDA)))
    assert {name: found for name, text in files.items() if (found := list(asked(text)))} == {}


def test_what_goes_past_the_interface_is_found() -> None:
    for line in (
        "torch.cuda.synchronize()",
        "import torch.cuda",
        "from torch.cuda import Event",
        "from torch import cuda",
        "torch.Event()",
        "x.pin_memory()",
        "torch.empty(3, pin_memory=True)",
        "x.to(y, non_blocking=True)",
        "x.record_stream(y)",
    ):
        assert len(list(asked(line))) == 1, line
    assert list(asked("torch.zeros(3, device=device)")) == []
