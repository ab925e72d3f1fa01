"""What a decode step of a large model asks of a device, counted without the device, the weights or the KV."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from support.absent_cuda import CUDA, AbsentCuda, CountedGraphs, Work
from transformers import AutoModelForCausalLM, LlamaConfig

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import AdapterKey, SamplingParams
from lorafleet_inference.engine.plan import NewRequest, StepItem, StepPlan, Unconstrained
from lorafleet_inference.kernels.triton.backend import TritonKernels
from lorafleet_inference.kernels.triton.blocks import HOPPER
from lorafleet_inference.model import attention
from lorafleet_inference.model.arena import HostPages
from lorafleet_inference.model.checked import check_model
from lorafleet_inference.model.graph_rooms import DecodeRoom, PromptRoom
from lorafleet_inference.model.host_adapter import HostAdapter
from lorafleet_inference.model.runner import ModelRunner
from lorafleet_inference.model.slab import Slab

NUM_ROWS, NUM_ADAPTERS, RANK, CONTEXT = 128, 32, 16, 256
BLOCKS_A_ROW = 32
DECODE = (DecodeRoom(NUM_ROWS, 64), DecodeRoom(NUM_ROWS, 0), DecodeRoom(NUM_ROWS, 64, has_sides=True),
          DecodeRoom(NUM_ROWS, 64, has_sides=True, has_affine=True))  # fmt: skip
"""With LoRA, without, where adapters may have it on embedding and head, and where they may have DoRA and biases, too."""
PROMPT, WITH_PROMPT = PromptRoom(256, 8, False, 24), PromptRoom(512, NUM_ROWS + 1, True, 161)
"""Of a prompt alone, and beside NUM_ROWS others."""
LLAMA_3_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 512,
}  # fmt: skip
NUM_LAYERS = 32
"""That it has."""
PHASES = {
    "LlamaRMSNorm": "norms", "LlamaDecoderLayer": "norms", "LlamaMLP": "MLP", "LlamaRotaryEmbedding": "rotary",
    "LlamaAttention": "rotary", "LlamaForCausalLM": "embedding and head", "LlamaModel": "embedding and head",
    "Decoder": "embedding and head", "Body": "embedding and head",
}  # fmt: skip
"""Of operations of torch by the innermost module that they are in; products count for themselves."""


@dataclass(frozen=True)
class Step:
    """A step, as the runner gets it."""

    context: int = CONTEXT
    """Of the first row; the others differ."""
    num_adapters: int = NUM_ADAPTERS
    temperature: float = 0.7
    prompt_tokens: int = 0
    """Of one more request, which begins with this step."""
    is_alone: bool = False
    """Nothing decodes beside the prompt."""


class CountedRunner:
    """A runner on a device that is not there, with graphs of the decode step of NUM_ROWS rows, of one without LoRA, and of prompts.

    `own_decoder`: by our own code for the layers, instead of transformers'.
    """

    def __init__(self, device: AbsentCuda, config: LlamaConfig, *, own_decoder: bool) -> None:
        self._device = device
        self._graphs = CountedGraphs(device)
        self._number = 0
        attention.register()
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME, dtype=torch.bfloat16)
        loaded = check_model(model.eval(), own_decoder=own_decoder)
        for module in loaded.model.modules():
            phase = PHASES.get(type(module).__name__)
            if phase is not None:
                module.register_forward_pre_hook(device.enter(phase))
                module.register_forward_hook(device.leave)
        num_layers, heads = config.num_hidden_layers, config.num_key_value_heads
        block_bytes = num_layers * 2 * heads * 16 * config.head_dim * 2
        self.runner = ModelRunner(
            loaded,
            EngineConfig(
                model="", device="cuda", kv_cache_memory_bytes=(NUM_ROWS + 1) * BLOCKS_A_ROW * block_bytes, max_rank=RANK,
                max_resident_adapters=NUM_ADAPTERS, max_batch_requests=NUM_ROWS + 1,
            ),
            triton=TritonKernels(CUDA, HOPPER),
            graphs=self._graphs,
        )  # fmt: skip
        bank = self.runner._adapters.bank
        num_pages = bank.layout.num_pages(RANK)
        pages = torch.zeros(1, 1, dtype=torch.bfloat16).expand(num_pages, bank.layout.page)
        slab = HostAdapter(Slab(HostPages((pages,)), (RANK,) * len(bank.layout.places)))
        for number in range(NUM_ADAPTERS):
            self.runner.install(_key(number), range(number * num_pages, (number + 1) * num_pages), slab)
        self.captured = {room: self._capture(room) for room in (*DECODE, PROMPT, WITH_PROMPT)}

    def _capture(self, room: DecodeRoom | PromptRoom) -> Work:
        assert self.runner.graphs is not None
        self.runner.graphs.capture(room)
        return self._graphs.nodes[-1]

    def step(self, step: Step) -> Work:
        """Run a step of requests that are known already, and return what it asked of the device until the next can be submitted."""
        self._number += 1
        lengths = [] if step.is_alone else [step.context + 7 * row % 240 for row in range(NUM_ROWS)]
        new, items = [], []
        for row, length in enumerate(lengths):
            name = f"{self._number}-{row}"
            adapter = _key(row % step.num_adapters) if step.num_adapters else None
            asked = SamplingParams(max_tokens=9, temperature=step.temperature, seed=row)
            blocks = tuple(range(row * BLOCKS_A_ROW, (row + 1) * BLOCKS_A_ROW))
            new.append(NewRequest(name, adapter, (5,) * length, length, asked, blocks))
            items.append(StepItem(name, length - 1, 1, samples=True, decode=True))
        gone = tuple(f"{self._number - 1}-{row}" for row in range(NUM_ROWS + 1))
        if items:
            self._compute(StepPlan(tuple(items), gone=gone, new=tuple(new)))
        items = [StepItem(item.request_id, item.end, 1, samples=True, decode=True) for item in items]
        begun = []
        if step.prompt_tokens:
            blocks = tuple(range(NUM_ROWS * BLOCKS_A_ROW, (NUM_ROWS + 1) * BLOCKS_A_ROW))
            prompt = (5,) * step.prompt_tokens
            name = f"{self._number}-{NUM_ROWS}"
            adapter = _key(0) if step.num_adapters else None
            begun.append(NewRequest(name, adapter, prompt, len(prompt), SamplingParams(max_tokens=9), blocks))
            items.append(StepItem(name, 0, len(prompt), samples=True))
        return self._compute(StepPlan(tuple(items), gone=gone if step.is_alone else (), new=tuple(begun)))

    def _compute(self, plan: StepPlan) -> Work:
        """Submit a step, collect it, and return what was asked of the device between."""
        work = self._device.begin()
        computing = self.runner.submit(plan)
        with self._device.phase("sampling"):
            computing.choose(Unconstrained())
        self._device.begin()
        computing.collect()
        return work


def _key(number: int) -> AdapterKey:
    return AdapterKey(f"adapter-{number}", "1")


@contextmanager
def counted_runner(num_layers: int, *, own_decoder: bool) -> Iterator[CountedRunner]:
    """While this is open, there is a runner to count with, of a model with the widths of Llama-3-8B."""
    device = AbsentCuda()
    with device.there():
        config = LlamaConfig(**LLAMA_3_8B, num_hidden_layers=num_layers)
        yield CountedRunner(device, config, own_decoder=own_decoder)
