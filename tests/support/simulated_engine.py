"""An engine of a tiny model on a simulated device, driven step by step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from support.absent_cuda import CUDA
from support.engines import DrivenEngine
from support.simulated_cuda import SimulatedCuda

from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.model.device_adapters import HostAdapter
from lorafleet_inference.model.loader import LoadedModel, load_model
from lorafleet_inference.model.runner import ModelRunner

if TYPE_CHECKING:
    from lorafleet_inference.kernels.triton.backend import TritonKernels


def on_cuda(config: EngineConfig) -> LoadedModel:
    """Load a model on the CPU, and take its weights to the device that is there."""
    loaded = load_model(replace(config, device="cpu", cpu_kernels=False))
    moved: dict[int, Any] = {}
    for module in loaded.model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                moved.setdefault(id(weight), torch.nn.Parameter(weight.detach().to(CUDA), requires_grad=False))
                module._parameters[name] = moved[id(weight)]
        for name, values in module._buffers.items():
            if values is not None:
                module._buffers[name] = values.to(CUDA)
    return loaded


class SimulatedRunner(ModelRunner):
    """A runner whose loader thread uses the simulated device too."""

    def __init__(
        self,
        simulated: SimulatedCuda,
        loaded: LoadedModel,
        config: EngineConfig,
        triton: "TritonKernels | None" = None,
    ) -> None:
        self._simulated = simulated
        super().__init__(loaded, config, triton)
        self.prepare()

    def settle(self, plan: AdapterPlan) -> AdapterPlan:
        with self._simulated.in_thread():
            return super().settle(plan)

    def load_slab(self, plan: AdapterPlan, *args: Any) -> HostAdapter:
        with self._simulated.in_thread():
            return super().load_slab(plan, *args)

    def install(self, key: AdapterKey, pages: Sequence[int], slab: HostAdapter) -> None:
        with self._simulated.in_thread():
            super().install(key, pages, slab)


@contextmanager
def engine_on(
    simulated: SimulatedCuda, config: EngineConfig, triton: "TritonKernels | None" = None
) -> Iterator[DrivenEngine]:
    """While this is open, an engine works on the device. Its loader thread works beside what the device was asked, before each step."""
    with simulated.there():
        runner = SimulatedRunner(simulated, on_cuda(config), config, triton)
        engine = DrivenEngine(config, runner=runner, loads_first=True)
        try:
            yield engine
        finally:
            engine.engine._loads.close()
            simulated.check()
