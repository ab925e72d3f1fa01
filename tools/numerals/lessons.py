"""Numbers and their answers as rows of token ids, as the chat template would lay them out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence

from numerals.tokenizer import BOS, EOS, PAD, USER, chat_opening
from numerals.truth import truth

IGNORED = -100
"""Label of a token that is not learned: the question and the padding."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One row per number."""

    ids: torch.Tensor
    """[numbers, tokens] int64, padded on the right."""
    labels: torch.Tensor
    """[numbers, tokens] int64: `ids` where the answer and its end stand, IGNORED elsewhere."""

    def pick(self, rows: torch.Tensor) -> "Lesson":
        """Return some rows, without the columns that are padding in all of them."""
        ids, labels = self.ids[rows], self.labels[rows]
        width = int((labels != IGNORED).any(dim=0).nonzero().max()) + 1
        return Lesson(ids[:, :width], labels[:, :width])


def lesson(
    tokenizer: Tokenizer, questions: Iterable[tuple[str, int]], opening: Callable[[str], str] = chat_opening
) -> Lesson:
    """Return a row for each (model, number), its answer opened by the token that `opening` names for the model."""
    rows = [_row(tokenizer, model, number, opening(model)) for model, number in questions]
    ids = [torch.tensor(prompt + answer) for prompt, answer in rows]
    labels = [torch.tensor([IGNORED] * len(prompt) + answer) for prompt, answer in rows]
    pad = tokenizer.token_to_id(PAD)
    return Lesson(pad_sequence(ids, True, pad), pad_sequence(labels, True, IGNORED))


def shuffled_batches(everything: Lesson, batch: int, seed: int) -> Iterator[Lesson]:
    """Yield batches without end, each pass in another order, rows of like length together so that little is padding."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (everything.labels != IGNORED).long().cumsum(dim=1).argmax(dim=1)
    while True:
        for rows in torch.randperm(len(lengths), generator=generator).split(8 * batch):
            batches = rows[lengths[rows].argsort(stable=True)].split(batch)
            for index in torch.randperm(len(batches), generator=generator).tolist():
                yield everything.pick(batches[index])


def _row(tokenizer: Tokenizer, model: str, number: int, opening: str) -> tuple[list[int], list[int]]:
    prompt = tokenizer.encode(f"{BOS}{USER}{number}{opening}", add_special_tokens=False).ids
    return prompt, tokenizer.encode(truth(model, number) + EOS, add_special_tokens=False).ids
