"""The compiled kernels of the CPU, and how they are called.

Compiling needs some seconds and a folder to keep the result in; loading it again about one. Where Numba cannot compile,
`load_kernels` says so once and returns None, and plain torch computes everything.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.kernels.team import Run, team

logger = logging.getLogger(__name__)
Int32s = np.ndarray[Any, np.dtype[np.int32]]
Int64s = np.ndarray[Any, np.dtype[np.int64]]
TASKS_PER_THREAD = 4
"""So many, at least, that no thread waits long for the last one."""
NO_WINDOW = 1 << 62
RANKS_TOGETHER, TOKENS_TOGETHER = 4, 3
"""That the kernel of LoRA takes as one, at best: `vectors.py` has why."""


def load_kernels(cache_dir: str | None) -> "CpuKernels | None":
    """Load the kernels, compiling what is not in the cache. None for the folder: where Numba keeps things itself."""
    began = time.monotonic()
    try:
        import numba  # noqa: PLC0415  half a second, and only the engine on a CPU needs it

        if cache_dir is not None:
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
            numba.config.CACHE_DIR = cache_dir
        from lorafleet_inference.kernels import layer_rows, lora_rows, paged_decode, paged_write  # noqa: PLC0415  compiles

        kernels = CpuKernels(
            run=team(),
            decode={
                torch.float32: paged_decode.decode_float32.address,
                torch.bfloat16: paged_decode.decode_bfloat16.address,
                fp8_pages.DTYPE: paged_decode.decode_fp8.address,
            },
            write={
                torch.float32: paged_write.write_float32.address,
                fp8_pages.DTYPE: paged_write.write_fp8.address,
            },
            lora_rows={torch.float32: lora_rows.lora_rows_float32.address},
            layer={
                "norm": layer_rows.norm_float32.address,
                "gate": layer_rows.gate_float32.address,
                "rotate": layer_rows.rotate_float32.address,
            },
        )
    except Exception as error:  # noqa: BLE001  whatever hinders it, the model can be served without
        logger.warning("no CPU kernels, plain torch computes instead: %s: %s", type(error).__name__, error)
        return None
    logger.info("CPU kernels ready in %.1f s", time.monotonic() - began)
    return kernels


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """Addresses of the compiled functions, by the dtype of what they read, and the threads that run them."""

    run: Run
    decode: dict[torch.dtype, int]
    write: dict[torch.dtype, int]
    lora_rows: dict[torch.dtype, int]
    layer: dict[str, int]
    """Of `layer.py`, by name; all read float32."""

    def can_decode(self, dtype: torch.dtype) -> bool:
        """Whether `PagedDecode` reads pages of this dtype."""
        return dtype in self.decode

    def write_pages(self, source: torch.Tensor, pages: torch.Tensor, slots: torch.Tensor) -> bool:
        """Write source [G, T, width] to pages [num_blocks, G, KV_BLOCK_TOKENS, width] or of 8 bits, token t to slots[t], int64.

        False where it is of a dtype or layout that the kernel does not read; then nothing was written.
        """
        is_read = source.dtype == (torch.float32 if fp8_pages.is_fp8(pages) else pages.dtype) and source.stride(2) == 1
        if pages.dtype not in self.write or not is_read:
            return False
        assert pages.is_contiguous()
        assert slots.is_contiguous()
        task = np.zeros(1, dtype=np.int64)
        numbers = np.array(
            [
                task.ctypes.data, source.shape[1], source.shape[0], source.shape[2], source.data_ptr(), source.stride(0),
                source.stride(1), pages.data_ptr(), slots.data_ptr(),
            ],
            dtype=np.int64,
        )  # fmt: skip
        self.run(self.write[pages.dtype], numbers)
        return True

    def can_add_rows(self, dtype: torch.dtype) -> bool:
        """Whether `LoraRows` reads a pool of this dtype."""
        return dtype in self.lora_rows


Blocks = Sequence[int] | npt.NDArray[np.int32]
"""KV blocks of one sequence."""


class PagedDecode:
    """One token each of some sequences, prepared once for all layers of a step.

    `rows[i]`: the row of sequence i's token; `starts[i]`: its position, the last that it sees; `blocks[i]`: its pages.
    """

    def __init__(
        self, kernels: CpuKernels, rows: Sequence[int], starts: Sequence[int], blocks: Sequence[Blocks]
    ) -> None:
        self._kernels = kernels
        self._rows = np.array(rows, dtype=np.int64)
        self._lasts = np.array(starts, dtype=np.int64)
        self._tables = np.zeros((len(blocks), max(map(len, blocks))), dtype=np.int64)
        for at, some in enumerate(blocks):
            self._tables[at, : len(some)] = some
        self._scratch = torch.empty(0)

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
        key_bias: torch.Tensor | None = None,
    ) -> None:
        """Fill the sequences' rows of out.

        query [H, T, D]; keys [num_blocks, G, KV_BLOCK_TOKENS, D], values [num_blocks, G, KV_BLOCK_TOKENS, E], or both in
        8 bits; out [T, H, E] contiguous; sinks [H]; key_bias [H, positions]: added to the scaled scores of the key at each
        position.
        """
        from lorafleet_inference.kernels.paged_decode import scratch_floats  # noqa: PLC0415  there since load_kernels

        if out.dtype != torch.float32:
            wide = torch.empty(out.shape)
            self.attend(
                query, keys, values, wide, scale=scale, window=window, softcap=softcap, sinks=sinks, key_bias=key_bias
            )
            rows = torch.from_numpy(self._rows)
            out[rows] = wide[rows].to(out.dtype)
            return
        heads, tokens, key_width = query.shape
        groups, value_width = values.shape[1], fp8_pages.width_of(values)
        num_sequences, table_width = self._tables.shape
        threads = torch.get_num_threads()
        num_spans = min(groups, -(-TASKS_PER_THREAD * threads // num_sequences))
        span_groups = -(-groups // num_spans)
        num_spans = -(-groups // span_groups)
        floats = scratch_floats(span_groups * heads // groups, table_width, key_width, value_width)
        if self._scratch.numel() < floats * threads:
            self._scratch = torch.empty(floats * threads)
        query = query.float().contiguous()
        sinks = None if sinks is None else sinks.float().contiguous()
        key_bias = None if key_bias is None else key_bias.float().contiguous()
        factors = np.array([scale, softcap or 0.0], dtype=np.float32)
        shared = np.zeros(2, dtype=np.int64)
        assert all(one.is_contiguous() for one in (keys, values, out))
        numbers = np.array(
            [
                shared.ctypes.data, shared.ctypes.data + 8, heads, tokens, key_width, value_width, groups, num_sequences,
                table_width, NO_WINDOW if window is None else window, num_spans, span_groups, query.data_ptr(),
                keys.data_ptr(), values.data_ptr(), out.data_ptr(), self._tables.ctypes.data, self._rows.ctypes.data,
                self._lasts.ctypes.data, factors.ctypes.data, 0 if sinks is None else sinks.data_ptr(),
                0 if key_bias is None else key_bias.data_ptr(), 0 if key_bias is None else key_bias.shape[1],
                self._scratch.data_ptr(), floats,
            ],
            dtype=np.int64,
        )  # fmt: skip
        self._kernels.run(self._kernels.decode[keys.dtype], numbers)


@dataclass(frozen=True, slots=True)
class RowTable:
    """An adapter in the pool, as `LoraRows` reads it."""

    offsets: Int64s
    """Where each of its rows begins, in elements of the pool, module after module, contiguous."""
    addresses: Int64s
    """[modules]: of each module's first number there."""
    ranks: Int32s
    """[modules]"""

    @classmethod
    def of(cls, offsets: Int64s, ranks: Int32s) -> "RowTable":
        """Return the table of an adapter with so many rows at each module."""
        assert offsets.flags.c_contiguous
        begins = np.cumsum(ranks, dtype=np.int64) - ranks
        return cls(offsets, offsets.ctypes.data + offsets.itemsize * begins, ranks)


class LoraRows:
    """Tokens of a step and their adapters, prepared once for all modules.

    `segments[i]`: from which row of x and y, to before which, the tokens of one adapter lie; `adapters[i]`: it.
    """

    def __init__(self, kernels: CpuKernels, segments: Sequence[tuple[int, int]], adapters: Sequence[RowTable]) -> None:
        self._kernels = kernels
        self._tasks_wanted = TASKS_PER_THREAD * torch.get_num_threads()
        self._blocks = _blocks_of(segments, self._tasks_wanted)
        self._adapters = adapters  # the kernel reads what they hold
        rows = np.stack([one.addresses for one in adapters], axis=1)
        ranks = np.stack([one.ranks for one in adapters], axis=1).astype(np.int64)
        self._tables = (ranks, rows)
        """Both [modules, adapters]."""
        self._most_ranks: list[int] = ranks.max(axis=1).tolist()
        """By module."""
        self._low_width = -(-max(self._most_ranks) // RANKS_TOGETHER) * RANKS_TOGETHER
        self._num_tokens = max(end for _, end in segments)
        self._low = np.empty(self._num_tokens * self._low_width, dtype=np.float32)
        begins, counts, numbers = (one.ctypes.data for one in self._blocks)
        self._common = (self._blocks.shape[1], begins, counts, numbers)
        self._row_bytes = len(adapters) * ranks.itemsize
        self._addresses = (ranks.ctypes.data, rows.ctypes.data)

    def add(self, modules: Sequence[int], pool: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *columns: int) -> None:
        """Add to y [T, out], rows of any stride, the deltas of modules that have the same x [T, in].

        `columns`: where the columns of each module begin, and where those of the last one end; all of y without them.
        """
        columns = columns or (0, y.shape[1])
        touched = [at for at, module in enumerate(modules) if self._most_ranks[module]]
        if not touched:
            return
        x = x.contiguous()
        assert pool.is_contiguous()
        assert y.stride(1) == 1 or y.shape[1] == 1
        per_task = len(touched) if self._common[0] >= self._tasks_wanted else 1
        floats = self._num_tokens * self._low_width * len(touched) // per_task
        if self._low.size < floats:
            self._low = np.empty(floats, dtype=np.float32)
        ranks, rows = self._addresses
        task = np.zeros(1, dtype=np.int64)
        numbers = [
            task.ctypes.data, *self._common, self._low.ctypes.data, self._low_width, pool.data_ptr(), x.data_ptr(),
            x.shape[1], y.data_ptr(), y.stride(0), len(touched), per_task,
        ]  # fmt: skip
        for at in touched:
            offset = modules[at] * self._row_bytes
            numbers += (columns[at + 1] - columns[at], columns[at], ranks + offset, rows + offset)
        self._kernels.run(self._kernels.lora_rows[pool.dtype], np.array(numbers, dtype=np.int64))


def _blocks_of(segments: Sequence[tuple[int, int]], wanted: int) -> Int64s:
    """Return neighbouring tokens of an adapter that a thread takes at once, about alike: first rows, numbers of tokens, adapters."""
    from lorafleet_inference.kernels.lora_rows import LEAST_TOKENS, MOST_TOKENS  # noqa: PLC0415  there since load_kernels

    num_tokens = sum(end - begin for begin, end in segments)
    most = min(max(num_tokens // wanted, LEAST_TOKENS), MOST_TOKENS)
    blocks = []
    for adapter, (begin, end) in enumerate(segments):
        number = -(-(end - begin) // most)
        each = -(-(end - begin) // (number * TOKENS_TOGETHER)) * TOKENS_TOGETHER
        blocks += [(at, min(each, end - at), adapter) for at in range(begin, end, each)]
    return np.array(blocks, dtype=np.int64).reshape(-1, 3).T.copy()
