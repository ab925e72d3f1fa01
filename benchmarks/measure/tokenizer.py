"""A tokenizer for random models."""

import random
import string

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def tokenizer(vocabulary: int) -> Tokenizer:
    """Words of letters for every id: as many characters a token as real text, and no merges, since prompts are token ids."""
    rng = random.Random(0)
    tokens = {token: number for number, token in enumerate(("<s>", "</s>", "<pad>"))}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        tokens[byte] = len(tokens)
    while len(tokens) < vocabulary:
        word = "Ġ" + "".join(rng.choices(string.ascii_lowercase, k=rng.randrange(2, 8)))
        tokens.setdefault(word, len(tokens))
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>", "<pad>")])
    return tokenizer
