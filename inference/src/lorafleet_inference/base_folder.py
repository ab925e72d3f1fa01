"""The configuration of the engine from options, with the base model at hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafleet_common.options import Values
from lorafleet_contract.names import CREDENTIALS_DIR
from lorafleet_inference.config import EngineConfig, ServerConfig
from lorafleet_inference.fetch import model_folder
from lorafleet_inference.model_bucket import SCHEME


def engine_config(values: Values, cache_dir: Path, *, drafts: bool = True) -> EngineConfig:
    """Return the configuration of the engine, the base model downloaded if it was named by its repository.

    `drafts`: whether a draft model lies here too; on further hosts of a base it does not.

    Raises:
        ConfigError: the model cannot be had, or a value is out of range.
    """
    own, server = values.of(None), values.of(ServerConfig)
    named = own.get("speculative_model") if drafts else None
    # what is out of range is said before a download
    EngineConfig(model=own["model"], speculative_model=named, **values.of(EngineConfig))
    folder = model_folder(
        own["model"],
        revision=own.get("model_revision"),
        cache_dir=cache_dir,
        credentials_dir=server.get("credentials_dir", Path(CREDENTIALS_DIR)),
        holder=server.get("pod_name"),
        s3_endpoint=own.get("model_s3_endpoint"),
        s3_region=own.get("model_s3_region"),
    )
    return EngineConfig(
        model=str(folder),
        kernel_cache=str(cache_dir / "kernels"),
        speculative_model=None if named is None else _draft_folder(named, own, server, cache_dir),
        **values.of(EngineConfig),
    )


def _draft_folder(model: str, own: Mapping[str, Any], server: Mapping[str, Any], cache_dir: Path) -> str:
    """Return the folder of the draft model, downloaded with the credentials of the base if it was named by its repository."""
    in_bucket, revision = model.startswith(SCHEME), None
    if not in_bucket and not Path(model).is_dir():
        model, _, revision = model.partition("@")
    folder = model_folder(
        model,
        revision=revision or None,
        cache_dir=cache_dir,
        credentials_dir=server.get("credentials_dir", Path(CREDENTIALS_DIR)),
        holder=server.get("pod_name"),
        s3_endpoint=own.get("model_s3_endpoint") if in_bucket else None,
        s3_region=own.get("model_s3_region") if in_bucket else None,
        option="--speculative-model",
    )
    return str(folder)
