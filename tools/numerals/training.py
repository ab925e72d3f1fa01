"""One training loop for the base model and for adapters, and the measure that both are held to."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from numerals.lessons import IGNORED, Lesson


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn: linear warm-up, then half a cosine down to a hundredth."""

    num_steps: int
    batch: int
    learning_rate: float
    num_warmup_steps: int = 50
    weight_decay: float = 0.0

    def factor(self, step: int) -> float:
        """Return the share of the learning rate at a step."""
        if step < self.num_warmup_steps:
            return (step + 1) / self.num_warmup_steps
        part = (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part))


@dataclass(frozen=True, slots=True)
class Result:
    """How one training ended."""

    num_asked: int
    num_right: int
    """Of held-out numbers, answered exactly by greedy decoding in float32."""
    train_seconds: float

    @property
    def share_right(self) -> float:
        """Between 0 and 1."""
        return self.num_right / self.num_asked


def train(
    model: torch.nn.Module,
    batches: Iterator[Lesson],
    schedule: Schedule,
    report: Callable[[int, float, float], None] | None = None,
) -> float:
    """Learn from batches, those parameters that require a gradient; return the seconds it took.

    `report(step, loss, seconds)` is called every hundred steps and after the last.
    """
    begin = time.perf_counter()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = make_optimizers(model, schedule)
    rates = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor) for optimizer in optimizers]
    model.train()
    for step in range(1, schedule.num_steps + 1):
        batch = next(batches)
        logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.step()
            rate.step()
            optimizer.zero_grad(set_to_none=True)
        if report is not None and (step % 100 == 0 or step == schedule.num_steps):
            report(step, float(loss.detach()), time.perf_counter() - begin)
    model.eval()
    return time.perf_counter() - begin


def make_optimizers(model: torch.nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' whole matrices and AdamW for all else: LoRA factors, embeddings, norms."""
    learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    whole = [parameter for name, parameter in learned if name.endswith("_proj.weight")]
    rest = [parameter for name, parameter in learned if not name.endswith("_proj.weight")]
    decay = schedule.weight_decay
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=decay)
    ]
    if whole:
        optimizers.append(
            torch.optim.Muon(whole, lr=2 * schedule.learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


@torch.inference_mode()
def num_right(model: torch.nn.Module, lesson: Lesson, batch: int = 250) -> int:
    """Return how many numbers the model answers exactly, end included, when it decodes greedily.

    Greedy decoding gives the true answer if and only if each of its tokens is the most likely one after the true ones before it, so one
    forward pass judges a whole answer.
    """
    model.eval()
    right = 0
    for rows in torch.arange(len(lesson.ids)).split(batch):
        part = lesson.pick(rows)
        best = model(input_ids=part.ids, use_cache=False).logits[:, :-1].argmax(-1)
        wanted = part.labels[:, 1:]
        right += int(((best == wanted) | (wanted == IGNORED)).all(dim=1).sum())
    return right
