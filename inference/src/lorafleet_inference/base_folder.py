"""The configuration of the engine from options, and the base model that it names, which may have to be downloaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorafleet_common.options import Values
from lorafleet_contract.names import CREDENTIALS_DIR, MODELS
from lorafleet_inference.config import EngineConfig, ServerConfig
from lorafleet_inference.fetch import find_model
from lorafleet_inference.model_bucket import SCHEME
from lorafleet_inference.model_cache import ModelCache, nobody
from lorafleet_inference.model_origin import Origin


@dataclass(frozen=True, slots=True)
class NamedBase:
    """The base model of a pod, and its draft model if it has one, as options name them."""

    engine: EngineConfig
    """Its models are names yet, where they are no folders."""
    model: Path | Origin
    draft: Path | Origin | None
    cache: ModelCache

    @property
    def is_here(self) -> bool:
        """Whether all of it is in folders, so that nothing has to be asked for."""
        return isinstance(self.model, Path) and isinstance(self.draft, Path | None)

    def brought(self, tell: Callable[[int], None] = nobody) -> EngineConfig:
        """Return the configuration with folders, after downloads where they are needed; `tell` is called with the per cent of
        the one that runs, again and again, and may raise to end it.

        Raises:
            ConfigError: the model cannot be had.
        """
        draft = None if self.draft is None else str(self._folder(self.draft, tell))
        return replace(self.engine, model=str(self._folder(self.model, tell)), speculative_model=draft)

    def _folder(self, model: Path | Origin, tell: Callable[[int], None]) -> Path:
        return model if isinstance(model, Path) else self.cache.get(model, tell=tell)


def named_base(values: Values, cache_dir: Path, *, drafts: bool = True) -> NamedBase:
    """Return what options say of the engine and its base.

    `drafts`: whether a draft model lies here too; on further hosts of a base it does not.

    Raises:
        ConfigError: a value is out of range, or the model is neither a folder nor something that can be asked for.
    """
    own, server = values.of(None), values.of(ServerConfig)
    draft = own.get("speculative_model") if drafts else None
    engine = EngineConfig(
        model=own["model"],
        kernel_cache=str(cache_dir / "kernels"),
        speculative_model=draft,
        **values.of(EngineConfig),
    )
    credentials_dir = server.get("credentials_dir", Path(CREDENTIALS_DIR))
    buckets: dict[str, Any] = {"s3_endpoint": own.get("model_s3_endpoint"), "s3_region": own.get("model_s3_region")}
    model = find_model(own["model"], revision=own.get("model_revision"), credentials_dir=credentials_dir, **buckets)
    cache = ModelCache(cache_dir / MODELS, holder=server.get("pod_name"))
    return NamedBase(engine, model, None if draft is None else _draft(draft, credentials_dir, buckets), cache)


def _draft(model: str, credentials_dir: Path, buckets: dict[str, Any]) -> Path | Origin:
    """The draft model, with the credentials of the base if it is named by its repository."""
    in_bucket, revision = model.startswith(SCHEME), None
    if not in_bucket and not Path(model).is_dir():
        model, _, revision = model.partition("@")
    return find_model(
        model,
        revision=revision or None,
        credentials_dir=credentials_dir,
        option="--speculative-model",
        **(buckets if in_bucket else {}),
    )
