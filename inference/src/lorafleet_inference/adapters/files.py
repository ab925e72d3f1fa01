"""Which files make up an adapter, and how large they may be. Whatever else lies beside them is not looked at."""

from collections.abc import Iterable
from dataclasses import dataclass

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
"""The one file of weights that PEFT reads."""
PICKLED = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.pkl")
TEXT_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""Tokenizer, template and generation files: an adapter may bring its own chat template and end tokens."""
FILES = TEXT_FILES | {CONFIG, WEIGHTS}
MAX_CONFIG_BYTES = 1 << 20
MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file of an adapter as a listing gives it, by its name in the adapter's folder."""

    name: str
    size_bytes: int
    version_id: str | None = None
    """The S3 version that was listed, where the bucket keeps versions."""
    tag: str = ""
    """Differs where the content does: a blob id, an entity tag, a time of change."""
    sha256: str | None = None
    """What it must have, where that is known before it comes."""


def files_of_adapter(found: Iterable[FoundFile], *, where: str, max_bytes: int) -> tuple[FoundFile, ...]:
    """Return the files that make up the adapter, sorted by name; `max_bytes` bounds their sum.

    A tokenizer or template file without content is as good as absent.

    Raises:
        AdapterError: ARTIFACT_NOT_FOUND there is no config; UNSAFE_FORMAT the weights are pickled; ARTIFACT_INVALID
            there are no weights, or a file is too large.
    """
    by_name = {file.name: file for file in found}
    if CONFIG not in by_name:
        raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{where} has no {CONFIG}")
    if WEIGHTS not in by_name:
        pickled = next((name for name in PICKLED if name in by_name), None)
        if pickled is not None:
            raise AdapterError(
                Reason.UNSAFE_FORMAT,
                f"{where} has its weights in {pickled} only, a pickle that could run code; save them as {WEIGHTS}",
            )
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{where} has no {WEIGHTS}")
    needed = (CONFIG, WEIGHTS)
    files = tuple(
        file for name, file in sorted(by_name.items()) if name in needed or (name in TEXT_FILES and file.size_bytes > 0)
    )
    for file in files:
        limit = {CONFIG: MAX_CONFIG_BYTES, WEIGHTS: max_bytes}.get(file.name, MAX_TEXT_BYTES)
        if not 0 < file.size_bytes <= limit:
            raise AdapterError(
                Reason.ARTIFACT_INVALID, f"{file.name} has {file.size_bytes} bytes; 1 to {limit} are taken"
            )
    total = sum(file.size_bytes for file in files)
    if total > max_bytes:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{where} has {total} bytes; at most {max_bytes} are taken")
    return files
