"""A base model by its name on a hub or in a bucket: downloaded before the engine starts."""

import os
import re
from pathlib import Path

from lorafleet_common.errors import ConfigError
from lorafleet_contract.names import MODEL_MOUNT, MODELS
from lorafleet_inference.model_bucket import SCHEME, BucketModel
from lorafleet_inference.model_cache import ModelCache
from lorafleet_inference.model_hub import HubModel
from lorafleet_inference.model_origin import Origin

_HUB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")


def model_folder(
    model: str,
    *,
    revision: str | None,
    cache_dir: Path,
    credentials_dir: Path,
    weights: bool = True,
    option: str = "--model",
) -> Path:
    """Return the folder of a base model: `model` itself, or where the hub repository or the files of a bucket that it names
    lie after a download.

    `option`: that named the model.

    Raises:
        ConfigError: neither a folder nor something that can be had.
    """
    found = find_model(model, revision=revision, credentials_dir=credentials_dir, option=option)
    if isinstance(found, Path):
        return found
    return ModelCache(cache_dir / MODELS).get(found, weights=weights)


def find_model(
    model: str,
    *,
    revision: str | None,
    credentials_dir: Path,
    s3_endpoint: str | None = None,
    s3_region: str | None = None,
    option: str = "--model",
) -> Path | Origin:
    """Return the folder that is a base model, or where the hub repository or the bucket that it names is to be asked; nothing is asked.

    `option`: that named the model.

    Raises:
        ConfigError: it names neither, or what goes with it is another's.
    """
    folder = Path(model)
    credentials = credentials_dir / MODEL_MOUNT
    if not model.startswith(SCHEME):
        for name, value in (("--model-s3-endpoint", s3_endpoint), ("--model-s3-region", s3_region)):
            if value is not None:
                raise ConfigError(name, f"goes with a model in a bucket, and {model} is none")
    if folder.is_dir():
        if revision is not None:
            raise ConfigError("--model-revision", f"goes with a hub repository, and {model} is a folder")
        return folder
    if model.startswith(SCHEME):
        if revision is not None:
            raise ConfigError("--model-revision", f"goes with a hub repository, and {model} is in a bucket")
        try:
            return BucketModel(model, endpoint=s3_endpoint, region=s3_region, credentials=credentials)
        except ValueError as error:
            raise ConfigError(option, str(error)) from error
    if not _HUB_ID.match(model) or model.startswith((".", "/")):
        raise ConfigError(option, f"{model} is no folder")
    token_file = credentials / "token"
    token = token_file.read_text().strip() if token_file.is_file() else None
    return HubModel(model, revision, endpoint=os.environ.get("HF_ENDPOINT"), token=token)
