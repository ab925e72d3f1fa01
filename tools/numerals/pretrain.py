"""The base model: learns all ways of writing a number, each opened by a token of its own, and answers in English."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from numerals.lessons import Lesson, lesson, shuffled_batches
from numerals.split import SEED, asked, seen
from numerals.tokenizer import BOS, EOS, MAX_MODEL_LEN, PAD, save_tokenizer, tagged_opening
from numerals.training import Result, Schedule, num_right, train
from numerals.truth import BASE, WRITERS

SCHEDULE = Schedule(num_steps=1300, batch=128, learning_rate=3e-3, num_warmup_steps=100, weight_decay=0.1)
REPEATS = {"roman": 2}
"""How often an answer stands in the material: Roman numerals end at 3999."""


def make_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Return the untrained model; the same one each time."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=MAX_MODEL_LEN,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.token_to_id(BOS),
            eos_token_id=tokenizer.token_to_id(EOS),
            pad_token_id=tokenizer.token_to_id(PAD),
        )
    )


def pretrain(tokenizer: Tokenizer, folder: Path, say: Callable[[str], None]) -> Result:
    """Train the base model and save it with its tokenizer."""
    model = make_model(tokenizer)
    judged = {name: lesson(tokenizer, [(name, number) for number in asked(name)], tagged_opening) for name in WRITERS}

    def report(step: int, loss: float, seconds: float) -> None:
        say(f"  step {step}/{SCHEDULE.num_steps}  loss {loss:.4f}  {seconds:.0f} s")
        if step % 500 == 0 or step == SCHEDULE.num_steps:
            right = {name: num_right(model, rows) / len(rows.ids) for name, rows in judged.items()}
            say("  held out: " + "  ".join(f"{name} {share:.1%}" for name, share in right.items()))
            model.train()

    seconds = train(model, _batches(tokenizer), SCHEDULE, report)
    save_tokenizer(tokenizer, folder)
    model.save_pretrained(folder)
    return Result(len(judged[BASE].ids), num_right(model, judged[BASE]), round(seconds, 1))


def _batches(tokenizer: Tokenizer) -> Iterator[Lesson]:
    questions = [(name, number) for name in WRITERS for number in seen(name) * REPEATS.get(name, 1)]
    return shuffled_batches(lesson(tokenizer, questions, tagged_opening), SCHEDULE.batch, SEED)
