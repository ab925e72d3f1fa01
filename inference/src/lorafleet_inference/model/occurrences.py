"""How often each token of a request occurred, kept from step to step for its penalties."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Occurrences:
    """Distinct tokens of a prompt and its answer so far, and how often each is in the answer."""

    def __init__(self, token_ids: Sequence[int], num_prompt: int) -> None:
        self._places: dict[int, int] = {}
        self._token_ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)
        self._num_seen = num_prompt
        for token_id in token_ids[:num_prompt]:
            self._count(token_id, 0)
        self.see(token_ids)

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        """[distinct tokens]"""
        return self._token_ids[: len(self._places)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """[distinct tokens]: how often each is in the answer."""
        return self._counts[: len(self._places)]

    def see(self, token_ids: Sequence[int] | npt.NDArray[np.int32]) -> None:
        """Take in the tokens that are new; `token_ids` are all known ones."""
        for token_id in token_ids[self._num_seen :]:
            self._count(int(token_id), 1)
        self._num_seen = max(self._num_seen, len(token_ids))

    def _count(self, token_id: int, number: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._counts):
            self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._token_ids[place] = token_id
        self._counts[place] += number
