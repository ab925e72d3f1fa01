"""Headers of safetensors files: whole ones are read as safetensors reads them, broken ones are refused with a reason."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from support.adapter_files import write_safetensors

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.headers import MAX_HEADER_BYTES, TensorFacts, read_header
from lorafleet_inference.errors import AdapterError

ONE = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def refusal(path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        read_header(path)
    assert caught.value.reason is Reason.ARTIFACT_INVALID
    return caught.value.message


def test_names_types_and_shapes_are_those_that_safetensors_sees(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {"a": np.zeros((3, 5), np.float32), "b": np.zeros((2,), np.float16), "c": np.zeros((), np.int64)}
    save_file(tensors, path, metadata={"format": "pt"})
    found = read_header(path)
    with safe_open(path, "np") as file:
        assert set(found) == set(file.keys())
        for name in found:
            assert list(found[name].shape) == file.get_slice(name).get_shape()
            assert found[name].dtype == file.get_slice(name).get_dtype()


def test_empty_and_metadata_only_files(tmp_path: Path) -> None:
    assert read_header(write_safetensors(tmp_path / "w", {"__metadata__": {"format": "pt"}})) == {}


@pytest.mark.parametrize("length", [0, 7, 12])
def test_truncated_headers(tmp_path: Path, length: int) -> None:
    path = write_safetensors(tmp_path / "w.safetensors", ONE, bytes(8))
    path.write_bytes(path.read_bytes()[:length])
    assert "truncated" in refusal(path)


def test_truncated_data_and_data_of_nobody(tmp_path: Path) -> None:
    assert "truncated: its tensors need 8 bytes" in refusal(write_safetensors(tmp_path / "w", ONE, bytes(7)))
    assert "belong to no tensor" in refusal(write_safetensors(tmp_path / "w", ONE, bytes(9)))


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_an_absurd_length_is_not_even_allocated(tmp_path: Path, length: int) -> None:
    assert "at most" in refusal(write_safetensors(tmp_path / "w", ONE, bytes(8), length=length))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"nonsense",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "x": {}}',
        {"x": None},
        {"x": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
        {"x": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
    ],
)
def test_headers_that_contradict_themselves(tmp_path: Path, header: Any) -> None:
    assert refusal(write_safetensors(tmp_path / "w", header, bytes(8)))


@pytest.mark.parametrize("second", [[4, 12], [12, 20], [0, 8]])
def test_overlaps_and_gaps(tmp_path: Path, second: list[int]) -> None:
    header = {**ONE, "y": {"dtype": "F32", "shape": [2], "data_offsets": second}}
    assert "overlap or leave gaps" in refusal(write_safetensors(tmp_path / "w", header, bytes(20)))


def test_a_missing_file_is_a_refusal(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nowhere")


@given(data=st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "w"
    path.write_bytes(struct.pack("<Q", min(len(data), 64)) + data)
    try:
        found = read_header(path)
    except AdapterError as error:
        assert error.reason is Reason.ARTIFACT_INVALID  # noqa: PT017
    else:
        assert all(isinstance(facts, TensorFacts) for facts in found.values())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html></html>", "web page"),
        (b"\n <html lang='en'>", "web page"),
        (b"PK\x03\x04" + bytes(40), "pickle"),
        (b"\x80\x02}q\x00X" + bytes(40), "pickle"),
        (bytes(4096), "full of zeros"),
    ],
)
def test_files_that_are_something_else_are_called_by_their_name(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    message = refusal(path)
    assert named in message
    assert "not a safetensors file" in message
