"""A base model by its hub name: downloaded before the engine starts."""

import os
import re
from pathlib import Path

from lorafleet_common.errors import ConfigError
from lorafleet_contract.names import MODEL_MOUNT, MODELS
from lorafleet_inference.model_cache import ModelCache

_HUB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")


def model_folder(
    model: str,
    *,
    revision: str | None,
    cache_dir: Path,
    credentials_dir: Path,
    weights: bool = True,
    holder: str | None = None,
) -> Path:
    """Return the folder of a base model: `model` itself, or where the hub repository of that name lies after a download.

    `holder` names this process to others that want the same model in the same cache.

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
    token = token_file.read_text().strip() if token_file.is_file() else None
    cache = ModelCache(cache_dir / MODELS, endpoint=os.environ.get("HF_ENDPOINT"), token=token, holder=holder)
    return cache.get(model, revision, weights=weights)
