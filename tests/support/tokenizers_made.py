"""Small tokenizers of each kind that models use, trained in a moment."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Zażółć gęślą jaźń; vingt trois, achtundachtzig, ¿dónde está?",
    "一二三四五六七八九十 百千万 きゅうじゅう 😀👩‍👩‍👧 ok",
    "one two three four five six seven eight nine ten hundred thousand stop STOP",
]
SPECIAL = ["<s>", "</s>", "<unk>", "<|user|>"]


def byte_level() -> Tokenizer:
    """As GPT-2 and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens([AddedToken("héé", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def byte_fallback(*, strip: bool = True) -> Tokenizer:
    """As Llama 2 and Mistral; without `strip` as Gemma."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
        limit_alphabet=30,
    )
    tokenizer.train_from_iterator(["▁" + line.replace(" ", "▁") for line in LINES], trainer)
    data = tokenizer.to_str()
    return Tokenizer.from_str(_without_special_bytes(data))


def _without_special_bytes(data: str) -> str:
    """Byte tokens are ordinary tokens of the vocabulary, not special ones."""
    import json

    document = json.loads(data)
    document["added_tokens"] = [token for token in document["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(document)


def word_piece() -> Tokenizer:
    """A decoder that looks at neighbours."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    )
    return tokenizer
