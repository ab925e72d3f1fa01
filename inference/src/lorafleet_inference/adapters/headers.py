"""The header of a safetensors file: names, types and shapes of its tensors, checked against the file's size. Reads no data.

Format: 8 bytes little-endian length N, N bytes of JSON `{name: {dtype, shape, data_offsets: [begin, end]}}`, the data.
"""

import codecs
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError

MAX_HEADER_BYTES = 32 << 20
"""About 200,000 tensors: more than any adapter has."""
LOOK_BYTES = 256
"""Of the beginning of a file, from which it is told what it is."""
METADATA = "__metadata__"
ITEM_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
             "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor of a file."""

    dtype: str
    """As safetensors names it: F32, F16, BF16…"""
    shape: tuple[int, ...]


def read_header(path: Path) -> Mapping[str, TensorFacts]:
    """Return the tensors of a file.

    Raises:
        AdapterError: ARTIFACT_INVALID: the file cannot be read, is truncated, or its header contradicts itself.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                _invalid(path, f"has {size} bytes: it is truncated")
            (length,) = struct.unpack("<Q", file.read(8))
            if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
                instead = what_it_is_instead(struct.pack("<Q", length) + file.peek(LOOK_BYTES))
                if instead is not None:
                    _invalid(path, f"is {instead}, not a safetensors file")
            if length > MAX_HEADER_BYTES:
                _invalid(path, f"says that its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
            if length > size - 8:
                _invalid(path, f"is truncated: it has {size} bytes, and its header alone would have {length}")
            text = file.read(length)
    except OSError as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{path.name} cannot be read: {error.strerror}") from error
    return _parse(path, text, size - 8 - length)


def what_it_is_instead(begin: bytes) -> str | None:
    """Return what a file that begins so is, where it is something that people have in the place of another; else None."""
    text = begin[:LOOK_BYTES].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer: the file itself was not fetched (git lfs pull)"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "a web page, probably the answer to a failed download"
    if begin.startswith(codecs.BOM_UTF8):
        return "text that begins with a byte order mark (UTF-8 with BOM); save it without"
    if begin.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "a pickle of torch.save"
    if begin and not begin.strip(b"\0"):
        return "full of zeros"
    return None


def _parse(path: Path, text: bytes, data_bytes: int) -> Mapping[str, TensorFacts]:
    try:
        document = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        _invalid(path, "has a header that is no JSON")
    if not isinstance(document, dict):
        _invalid(path, "has a header that is no JSON object")
    tensors: dict[str, TensorFacts] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in document.items():
        if name == METADATA:
            continue
        tensors[name], span = _tensor(path, name, entry)
        spans.append(span)
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            _invalid(path, "has tensors that overlap or leave gaps")
        end = stop
    if end > data_bytes:
        _invalid(path, f"is truncated: its tensors need {end} bytes and it has {data_bytes}")
    if end < data_bytes:
        _invalid(path, f"has {data_bytes - end} bytes that belong to no tensor")
    return tensors


def _tensor(path: Path, name: str, entry: Any) -> tuple[TensorFacts, tuple[int, int]]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers_are_whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        num_bytes = -(-math.prod(shape) * ITEM_BITS[dtype] // 8)
    except (KeyError, TypeError, ValueError):
        _invalid(path, f"describes tensor {name} in a way that cannot be understood")
    if not numbers_are_whole or end - begin != num_bytes:
        _invalid(path, f"gives tensor {name} of shape {list(shape)} a wrong place")
    return TensorFacts(dtype, shape), (begin, end)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _invalid(path: Path, what: str) -> NoReturn:
    raise AdapterError(Reason.ARTIFACT_INVALID, f"{path.name} {what}")
