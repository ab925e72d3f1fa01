"""The benchmark of steps on a GPU: it says when there is none, its floors are the formula, and every part of it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.forked import run_forked

from lorafleet_inference.cards import Card
from lorafleet_inference.model.budget import Wish, budget
from lorafleet_inference.model.dry_run import model_size

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "benchmarks" / "gpu.py"
SOURCES = os.pathsep.join(str(ROOT / name / "src") for name in ("contract", "common", "inference"))
TINY = ("--device=cpu", "--size=tiny", "--dtype=float32", "--rounds=2", "--loads=2", "--context=40", "--prompts=33")


@pytest.fixture(autouse=True)
def _measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def run(*options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *options],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1", **variables},
    )


def test_without_a_gpu_nothing_is_measured_and_the_status_is_2(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    done = run(f"--output={output}", f"--cache={tmp_path}", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr == "gpu.py: torch finds no CUDA device here, so nothing was measured\n"
    assert not output.exists()


def test_an_unknown_part_is_named() -> None:
    done = run("--parts=decdoe")
    assert done.returncode == 2
    assert "'decdoe' is none of" in done.stderr


def test_a_batch_of_no_sequence_is_refused() -> None:
    done = run("--batches=8,0")
    assert done.returncode == 2
    assert "0 is less than 1" in done.stderr


def test_every_part_runs_on_a_model_of_a_moment(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    options = ("--batches=1,3", "--adapters=0,2", "--mixed=3", "--commit=abc", f"--cache={tmp_path}")
    done = run_forked("support.forked_programs:script", str(BENCHMARK), *TINY, *options, f"--output={output}")
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    found = document["gpu"]
    assert document["environment"]["commit"] == "abc"
    assert [(row["batch"], row["adapters"]) for row in found["decode"]] == [(1, 0), (3, 0), (3, 2)]
    early = [(row["batch"], row["adapters"], row["rank_bound"], row["is_captured"]) for row in found["early"]]
    assert early == [(3, 2, 16, False), (3, 2, 128, False)]
    assert all(row["in_turn_ms"] > 0 < row["early_ms"] for row in found["early"])
    assert "| 3 | 2 | 128 |" in done.stdout
    assert [row["sum_of_ranks"] for row in found["ranks"]] == [8 + 16 + 32, 3 * 128]
    assert [(row["tokens"], row["adapters"]) for row in found["prefill"]] == [(33, 0), (33, 1)]
    assert [row["batch"] for row in found["transformers"]] == [1, 3]
    assert 0 < found["cold"]["beside"]["median_ms"] <= found["cold"]["beside"]["worst_ms"]
    for row in found["decode"]:
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["batch"] / row["ahead_ms"], rel=0.01)
    assert "| batch | adapters | step ms, waited for | step ms |" in done.stdout
    assert [part["adapters"] for part in found["kernels"]] == [0, 2]
    assert all(part["kernels"] for part in found["kernels"])
    assert "Kernels of a decode step of batch 3 with 2 adapters" in done.stdout


def test_a_part_that_fails_is_told_and_leaves_the_others(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    too_many = "--batches=600"  # sequences: each has a token id of its own, and the tiny vocabulary has 512
    options = ("--parts=decode,prefill", too_many, "--adapters=0", f"--cache={tmp_path}")
    done = run_forked("support.forked_programs:script", str(BENCHMARK), *TINY, *options, f"--output={output}")
    assert done.returncode == 1, done.stdout
    found = json.loads(output.read_text())["gpu"]
    assert list(found["failed"]) == ["decode"]
    assert [row["tokens"] for row in found["prefill"]] == [33, 33]
    assert "Not measured: decode (" in done.stdout


def test_the_floor_of_a_decode_step_counts_each_byte_once() -> None:
    from measure.floors import Ceilings, decode_seconds
    from measure.sizes import SIZES

    endless = Ceilings(bytes_per_second=1.0, flops_per_second=float("inf"))
    weights = 2 * (32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 4096 * 128256)
    keys_and_values = 128 * 1024 * 32 * 2 * 8 * 128 * 2
    a_row = 2 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    found = decode_seconds(SIZES["8b"], 2, endless, batch=128, context=1024, ranks=[8, 16])
    assert found == weights + keys_and_values + 24 * a_row


def test_a_plan_has_the_same_floor(tmp_path: Path) -> None:
    from measure.floors import Ceilings, decode_seconds
    from measure.sizes import SIZES

    size, itemsize = SIZES["8m"], 2
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "num_hidden_layers": size.layers,
        "hidden_size": size.hidden, "intermediate_size": size.intermediate, "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads, "vocab_size": size.vocabulary, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = model_size(tmp_path, dtype="auto", max_batch_tokens=64, max_batch_requests=128)
    card = Card(80 << 30, 1e12)
    found = budget(made, card, Wish(num_adapters=32, rank=16, context=1024, max_requests=128))
    assert [floor.num_requests for floor in found.floors] == [1, 8, 32, 128]
    ceilings = Ceilings(card.bytes_per_second, float("inf"))
    for floor in found.floors:
        ranks = [16] * min(32, floor.num_requests)
        expected = decode_seconds(size, itemsize, ceilings, batch=floor.num_requests, context=1024, ranks=ranks)
        assert floor.seconds == pytest.approx(expected, rel=1e-3), "norms are what differs"


def test_a_step_is_never_faster_than_its_products() -> None:
    from measure.floors import Ceilings, decode_seconds, prefill_seconds
    from measure.sizes import SIZES

    ceilings = Ceilings(bytes_per_second=float("inf"), flops_per_second=1.0)
    weights, head, layers, hidden = 7_504_658_432, 4096 * 128256, 32, 4096
    assert decode_seconds(SIZES["8b"], 2, ceilings, batch=3, context=9, ranks=[]) == 2 * 3 * weights
    prompt = 2 * 100 * (weights - head) + layers * 2 * hidden * 100 * 100 + 2 * head
    assert prefill_seconds(SIZES["8b"], 2, ceilings, tokens=100, rank=0) == prompt


def test_tables_compare_with_the_base_at_the_same_batch() -> None:
    from measure.gpu_report import gpu_tables

    row = {"batch": 32, "sum_of_ranks": 0, "floor_ms": 5.0, "tokens_per_second": 1000.0}
    rows = [
        row | {"adapters": 0, "step_ms": 8.0, "ahead_ms": 6.0, "of_floor": 1.6},
        row | {"adapters": 8, "step_ms": 9.0, "ahead_ms": 7.5, "of_floor": 1.8},
    ]
    text = gpu_tables(
        {"ceilings": {"bytes_per_second": 4e12, "flops_per_second": 8e14}, "decode": rows, "skipped": ["cold"]}
    )
    early = {"batch": 128, "adapters": 8, "rank_bound": 16, "is_captured": True, "in_turn_ms": 10.0, "early_ms": 9.5}
    told = gpu_tables({"ceilings": {"bytes_per_second": 4e12, "flops_per_second": 8e14}, "early": [early]})
    assert "| 128 | 8 | 16 | 10.00 | 9.50 | -5.0 % |" in told
    kernels = [{"name": f"k{number}", "calls": 1, "us": 99.0 - number} for number in range(12)]
    kernels.append({"name": "record", "calls": 1, "us": 3.0})
    part = {"batch": 1, "adapters": 1, "kernels": kernels}
    told = gpu_tables({"ceilings": {"bytes_per_second": 4e12, "flops_per_second": 8e14}, "kernels": [part]})
    assert "| `record` | 1 | 0.00 | 3.0 |" in told
    assert "k9" not in told
    assert "4.00 TB/s of a copy, 800 TFLOP/s" in text
    assert "| 32 | 8 | 9.00 | 7.50 | 5.00 | 1.50 | 25.0 % | 1,000 |" in text
    assert "out of time: cold" in text
