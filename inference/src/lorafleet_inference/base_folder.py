"""The configuration of the engine from options, with the base model at hand."""

from pathlib import Path

from lorafleet_common.options import Values
from lorafleet_contract.names import CREDENTIALS_DIR
from lorafleet_inference.config import EngineConfig, ServerConfig
from lorafleet_inference.fetch import model_folder


def engine_config(values: Values, cache_dir: Path) -> EngineConfig:
    """Return the configuration of the engine, the base model downloaded if it was named by its repository.

    Raises:
        ConfigError: the model cannot be had, or a value is out of range.
    """
    own, server = values.of(None), values.of(ServerConfig)
    EngineConfig(model=own["model"], **values.of(EngineConfig))  # what is out of range is said before a download
    folder = model_folder(
        own["model"],
        revision=own.get("model_revision"),
        cache_dir=cache_dir,
        credentials_dir=server.get("credentials_dir", Path(CREDENTIALS_DIR)),
        holder=server.get("pod_name"),
        s3_endpoint=own.get("model_s3_endpoint"),
        s3_region=own.get("model_s3_region"),
    )
    return EngineConfig(model=str(folder), kernel_cache=str(cache_dir / "kernels"), **values.of(EngineConfig))
