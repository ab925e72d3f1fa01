"""A base model by its hub name: downloaded before the engine starts."""

import logging
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import disable_progress_bars

from lorafleet_common.errors import ConfigError
from lorafleet_contract.names import MODEL_MOUNT

logger = logging.getLogger(__name__)
_HUB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")
TEXT_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
WEIGHT_FILES = ("*.safetensors",)
SKIPPED = ("[!1]*/*", "1[!_]*/*", "consolidated*")
"""Subfolders and second copies of the weights in formats that are not loaded; `1_Pooling` says how embeddings are made."""


def model_folder(
    model: str, *, revision: str | None, cache_dir: Path, credentials_dir: Path, weights: bool = True
) -> Path:
    """Return the folder of a base model: `model` itself, or where the hub repository of that name lies after a download.

    Raises:
        ConfigError: neither a folder nor a repository that can be had.
    """
    folder = Path(model)
    if folder.is_dir():
        if revision is not None:
            raise ConfigError("--model-revision", f"goes with a hub repository, and {model} is a folder")
        return folder
    if not _HUB_ID.match(model) or model.startswith((".", "/")):
        raise ConfigError("--model", f"{model} is no folder")
    token_file = credentials_dir / MODEL_MOUNT / "token"
    disable_progress_bars()
    logger.info("getting %s from the hub", model)
    try:
        path = snapshot_download(
            model,
            revision=revision,
            cache_dir=cache_dir / "models",
            token=token_file.read_text().strip() if token_file.is_file() else None,
            allow_patterns=[*TEXT_FILES, *(WEIGHT_FILES if weights else ())],
            ignore_patterns=list(SKIPPED),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError("--model", f"{model} is no folder, and the hub did not give it: {first_line}") from error
    return Path(path)
