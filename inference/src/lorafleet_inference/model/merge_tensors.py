"""Reads the tensors of a merge, which are made of those of its parts when they are read."""

import math
from collections.abc import Callable
from typing import Final

import torch

from lorafleet_inference.adapters.types import MergedParts
from lorafleet_inference.engine.merging import seed_of
from lorafleet_inference.model.merge_methods import combined

Read = Callable[[str], torch.Tensor]
"""A tensor of an adapter by its name, float32, on the CPU."""
Pair = tuple[torch.Tensor, torch.Tensor]


class MergeReader:
    """A and B of a merge. One module is kept, since both are made at once and read one after the other."""

    def __init__(self, merged: MergedParts, reads: list[Read]) -> None:
        """`reads`: those of the parts."""
        self._merge = merged.merge
        self._digest: Final = merged.merge.digest
        self._reads = reads
        self._sites = [{one.module: one for one in (*plan.sites, *plan.side_sites)} for plan in merged.plans]
        self._places = {
            key: (module, index)
            for sites in self._sites
            for module in sites
            for index, key in enumerate((f"lora_A of {module}", f"lora_B of {module}"))
        }
        self._last: tuple[str, Pair] | None = None

    def __call__(self, key: str) -> torch.Tensor:
        """Return a tensor by its name in the plan of the merge.

        Raises:
            AdapterError: a part cannot be read.
        """
        module, index = self._places[key]
        if self._last is None or self._last[0] != module:
            self._last = module, self._made(module)
        return self._last[1][index]

    def _made(self, module: str) -> Pair:
        parts = zip(self._merge.parts, self._sites, self._reads, strict=True)
        terms = [(part.weight, sites[module], read) for part, sites, read in parts if module in sites]
        pairs = [(read(site.a_key), read(site.b_key)) for _, site, read in terms]
        weights = [weight * site.scale for weight, site, _ in terms]
        if not self._merge.method.prunes:
            scaled = [b * weight for (_, b), weight in zip(pairs, weights, strict=True)]
            return torch.cat([a for a, _ in pairs]), torch.cat(scaled, dim=1)
        # half of a weight, multiplied, is for A and half for B; its sign counts once
        halves = [math.sqrt(abs(weight)) for weight in weights]
        signed = [math.copysign(half, weight) for half, weight in zip(halves, weights, strict=True)]
        generator = torch.Generator().manual_seed(seed_of(self._digest, module))
        a = combined([a for a, _ in pairs], signed, self._merge, generator)
        return a, combined([b for _, b in pairs], halves, self._merge, generator)
