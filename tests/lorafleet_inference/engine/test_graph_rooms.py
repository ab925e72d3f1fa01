"""Which graph computes a step."""

import random

import numpy as np
import pytest

from lorafleet_inference.kernels.triton.fixed_prompts import fill
from lorafleet_inference.model.graph_rooms import (
    ITEM_TOKENS,
    PIECE_TOKENS,
    PROMPT_SIZES,
    DecodeRoom,
    PromptRoom,
    captured_bytes,
    decode_rooms,
    prompt_room,
    prompt_rooms,
)


@pytest.mark.parametrize("max_requests", [1, 7, 256, 1000])
def test_a_step_with_prompts_has_the_smallest_graph_that_holds_it(max_requests: int) -> None:
    """Whatever its sequences and adapters are, if it has at most 512 tokens and as many sequences as decode steps may have."""
    rooms = prompt_rooms(2048, max_requests, has_lora=True)
    for _ in range(300):
        counts = [random.randint(2, 200)]
        while sum(counts) < 512 and len(counts) < min(max_requests, 256) and random.random() < 0.98:
            counts.append(random.choice((1, 1, 1, 1, 2, 5, 60)))
        num_tokens, has_decodes = sum(counts), 1 in counts
        num_items = sum(-(-count // ITEM_TOKENS) for count in counts) if random.random() < 0.7 else 0
        room = prompt_room(rooms, num_tokens, len(counts), num_items, has_decodes=has_decodes)
        if num_tokens > 1024:
            assert room is None
            continue
        assert room is not None
        assert room.num_tokens == min(size for size in PROMPT_SIZES if size >= num_tokens)
        assert room.num_rows >= len(counts)
        assert room.num_items >= num_items
        assert bool(room.num_items) == bool(num_items), "a step of the base pays nothing for LoRA"
        assert room.has_decodes or not has_decodes
        assert room.num_pieces >= sum(
            -(-count // PIECE_TOKENS) for count in counts if count > 1 or not room.has_decodes
        )
        smaller = [
            one
            for one in rooms
            if one < room and one.num_tokens == room.num_tokens and bool(one.num_items) == bool(num_items)
        ]
        assert all(
            one.num_rows < len(counts) or one.has_decodes < has_decodes or one.num_items < num_items for one in smaller
        )


def test_rooms_are_no_larger_than_a_step_can_be() -> None:
    assert prompt_rooms(24, 2, has_lora=False) == [PromptRoom(24, 2, False, 0), PromptRoom(24, 2, True, 0)]
    assert list(decode_rooms(2, has_lora=True, has_sides=True, has_affine=True)) == [
        DecodeRoom(1, 0), DecodeRoom(1, 1), DecodeRoom(1, 1, has_sides=True), DecodeRoom(1, 1, has_sides=True, has_affine=True),
        DecodeRoom(2, 0), DecodeRoom(2, 2), DecodeRoom(2, 2, has_sides=True), DecodeRoom(2, 2, has_sides=True, has_affine=True),
    ]  # fmt: skip
    assert prompt_room(prompt_rooms(24, 2, has_lora=False), 5, 1, 1, has_decodes=False) is None


def test_a_prompt_is_cut_into_pieces_beside_single_tokens() -> None:
    here = {
        "tables": np.zeros((4, 3), np.int32), "decodes": np.zeros(4, np.int32), "lasts": np.full(4, -1, np.int32),
        "pieces": np.zeros((6, 4), np.int32),
    }  # fmt: skip
    tables = np.array([[4, 5], [6, 0], [7, 8]], np.int32)
    arrays = (np.array([0, 9, 10]), np.array([16, 3, 0]), np.array([9, 1, 5]))
    fill(here, *arrays, tables, piece_tokens=4)
    assert here["tables"].tolist() == [[6, 0, 0], [4, 5, 0], [7, 8, 0], [0, 0, 0]]
    assert (here["decodes"][0], here["lasts"].tolist()) == (9, [3, -1, -1, -1])
    assert here["pieces"].tolist() == [
        [1, 0, 16, 4],
        [1, 4, 20, 4],
        [1, 8, 24, 1],
        [2, 10, 0, 4],
        [2, 14, 4, 1],
        [0, 0, 0, 0],
    ]


def test_memory_of_captured_steps_grows_with_each_of_its_causes() -> None:
    given = {
        "max_requests": 64, "max_tokens": 2048, "max_model_len": 8192, "logit_bytes": 1 << 18, "activations": 1 << 28,
        "graph_bytes": 1 << 22, "item_bytes": 1 << 16, "has_sides": True, "has_affine": True,
    }  # fmt: skip
    least = captured_bytes(**given)
    assert captured_bytes(**given | {"activations": (1 << 28) + 2}) == least + 1, "1,024 of 2,048 tokens"
    assert captured_bytes(**given | {"logit_bytes": (1 << 18) + 1}) == least + 2 * 64
    rooms = len(list(decode_rooms(64, has_lora=True, has_sides=True, has_affine=True))) + len(
        prompt_rooms(2048, 64, has_lora=True)
    )
    assert captured_bytes(**given | {"graph_bytes": (1 << 22) + 1}) == least + rooms
    most = max(one.num_items for one in prompt_rooms(2048, 64, has_lora=True))
    assert most == 1024 // 16 + 64
    assert captured_bytes(**given | {"item_bytes": (1 << 16) + 1}) == least + most
    assert captured_bytes(**given | {"max_model_len": 16384}) > least
    assert captured_bytes(**given | {"has_sides": False}) < least
    assert captured_bytes(**given | {"has_affine": False}) < least
