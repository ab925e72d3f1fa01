"""Pods of a simulation: what is on their devices, and what they were given to do."""

from collections import OrderedDict
from collections.abc import Iterable

DECAY = 0.5
"""Of the tokens given to a pod in one step, the part that it still works on in the next."""


class SimulatedPod:
    """One pod: slots on its device, least recently used first."""

    def __init__(self, uid: str, slots: int) -> None:
        self.uid = uid
        self.slots = slots
        self.load = 0.0
        """Tokens that it has still to work on, as a gateway that counts them would have it."""
        self.tokens = 0
        """Tokens given to it in this minute."""
        self.num_loads = 0
        self.kept: frozenset[int] = frozenset()
        """What a placement keeps there."""
        self._device: OrderedDict[int, None] = OrderedDict()

    def has(self, adapter: int) -> bool:
        """Whether an adapter is on the device."""
        return adapter in self._device

    def keep(self, adapters: Iterable[int]) -> None:
        """Take in what is to be kept there, and load what is not on the device."""
        self.kept = frozenset(adapters)
        for adapter in sorted(self.kept):
            if adapter not in self._device:
                self._load(adapter)

    def serve(self, adapter: int, tokens: int) -> bool:
        """Work on a request; return whether its adapter was on the device."""
        is_hit = adapter in self._device
        if is_hit:
            self._device.move_to_end(adapter)
        else:
            self._load(adapter)
        self.load += tokens
        self.tokens += tokens
        return is_hit

    def _load(self, adapter: int) -> None:
        """What was loaded on demand gives way before what is kept; of each the least recently used."""
        if len(self._device) >= self.slots:
            victim = next((one for one in self._device if one not in self.kept), next(iter(self._device)))
            del self._device[victim]
        self._device[adapter] = None
        self.num_loads += 1

    def pass_step(self) -> None:
        """A step is over."""
        self.load *= DECAY
