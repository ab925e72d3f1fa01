"""Every option of `serve` in one table: flag, environment variable, default, meaning.

`--max-rank 32` and `LORAFLEET_MAX_RANK=32` say the same; the flag wins. A variable that begins with LORAFLEET_ and is no
option stops the process like an unknown flag does.
"""

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from lorafleet_common.logs import LogFormat
from lorafleet_contract.names import CACHE_DIR
from lorafleet_contract.resources import quantity_bytes
from lorafleet_contract.sources import AdapterSource
from lorafleet_inference.config import DeviceChoice, DtypeChoice, EngineConfig, ServerConfig, UnknownFields
from lorafleet_inference.errors import ConfigError

PREFIX = "LORAFLEET_"
FOR_OTHERS = frozenset({"LORAFLEET_URL", "LORAFLEET_REGISTRY", "LORAFLEET_TAG"})
"""Variables of the project that the shell of a user may hold and that are not ours to judge; so is LORAFLEET_TEST_*."""
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
"""Kubernetes adds such variables for every Service of the namespace, also for those named lorafleet-…."""
_LINK_VALUE = re.compile(r"^(tcp|udp|sctp)://")

Parse = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `config` and `field` say which value of the configuration it sets; its default stands there."""

    name: str
    help: str
    parse: Parse
    metavar: str
    config: type[EngineConfig] | type[ServerConfig] | None
    field: str
    default_text: str | None = None
    """For the help, where the default is not a plain value."""
    is_flag: bool = False
    is_list: bool = False

    @property
    def flag(self) -> str:
        """As written on a command line."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.name.upper().replace("-", "_")

    @property
    def shown_default(self) -> str:
        """The default as people write it."""
        if self.default_text is not None or self.config is None:
            return self.default_text or ""
        default = _field_default(self.config, self.field)
        if self.parse is quantity_bytes:
            return _as_quantity(default)
        if self.is_flag:
            return "on" if default else "off"
        return str(default)


def _field_default(config: type[EngineConfig] | type[ServerConfig], name: str) -> Any:
    field = next(field for field in fields(config) if field.name == name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _as_quantity(num_bytes: int) -> str:
    for unit, size in (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if num_bytes % size == 0:
            return f"{num_bytes // size}{unit}"
    return str(num_bytes)


def _choice(*values: str) -> Parse:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"one of {', '.join(values)}")
        return text

    return parse


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"not a whole number: {text!r}") from None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"not a number of seconds: {text!r}") from None


def _sha256(text: str) -> str:
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise ValueError("not 64 hex digits in lower case")
    return text


def _milliseconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"not a number of milliseconds: {text!r}") from None


def _adapter(text: str) -> tuple[str, str]:
    name, separator, source = text.partition("=")
    if not (name and separator and source):
        raise ValueError(f"not NAME=SOURCE: {text!r}")
    return name, source


def _sources(text: str) -> tuple[AdapterSource, ...]:
    try:
        return tuple(TypeAdapter(list[AdapterSource]).validate_json(text))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"not a JSON list of adapter sources: {where}: {first['msg']}") from None


def default_cache_dir() -> Path:
    """Return the pod's cache mount where there is one, else a folder of the user's."""
    if os.access(CACHE_DIR, os.W_OK):
        return Path(CACHE_DIR)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "inference"


E, S = EngineConfig, ServerConfig
OPTIONS: tuple[Option, ...] = (
    Option("model", "Folder with config.json, tokenizer.json and safetensors weights, or a hub repository.", str,
           "PATH_OR_ID", None, "model", "required"),
    Option("model-revision", "Branch, tag or commit of the hub repository.", str, "REV", None, "model_revision", "main"),
    Option("served-name", "Name under which the base model answers.", str, "NAME", None, "served_name",
           "last part of --model"),
    Option("adapter", "An adapter to load at the start: NAME=FOLDER, NAME=hf:REPO[@REVISION] or NAME=s3://BUCKET/PREFIX. "
           "May be given several times; in the variable, commas separate.", _adapter, "NAME=SOURCE", S, "adapters",
           "none", is_list=True),
    Option("adapter-sources", "Declared sources, from which the admin API may load: a JSON list as "
           "BaseModelDeployment.spec.adapterSources.", _sources, "JSON", S, "adapter_sources", "none"),
    Option("host", "Address of the public port.", str, "ADDRESS", S, "host"),
    Option("port", "Public port; 0 takes a free one.", _integer, "PORT", S, "port"),
    Option("admin-host", "Address of the admin port; without a token always loopback.", str, "ADDRESS", S, "admin_host"),
    Option("admin-port", "Admin port; 0 takes a free one.", _integer, "PORT", S, "admin_port"),
    Option("admin-token-file", "File with the bearer token of the admin port.", Path, "FILE", S, "admin_token_file",
           "no token, loopback only"),
    Option("admin-token-sha256", "SHA-256 of the bearer token of the admin port, in hex: what a pod has to know of it.", _sha256,
           "HEX", S, "admin_token_sha256", "none"),
    Option("pod-name", "Name of this pod in the header x-lorafleet-pod.", str, "NAME", S, "pod_name"),
    Option("device", "Where the model runs: auto, cpu or cuda.", _choice(*get_args(DeviceChoice)), "DEVICE", E, "device"),
    Option("dtype", "Number format of weights and activations: auto, float32, bfloat16 or float16.",
           _choice(*get_args(DtypeChoice)), "DTYPE", E, "dtype"),
    Option("max-model-len", "Tokens of prompt and answer together; cut to what the KV cache holds.", _integer, "TOKENS", E, "max_model_len",
           "what the model's config says"),
    Option("max-batch-tokens", "Tokens that one step computes at most.", _integer, "TOKENS", E, "max_batch_tokens"),
    Option("target-step-ms", "How long a step should take at most. The engine learns from its steps how many tokens fit; a "
           "request that comes waits for the step that runs.", _milliseconds, "MS", E, "target_step_ms"),
    Option("max-batch-requests", "Sequences that run at the same time.", _integer, "NUMBER", E, "max_batch_requests"),
    Option("max-resident-adapters", "Adapters in device memory.", _integer, "NUMBER", E, "max_resident_adapters"),
    Option("max-rank", "Largest LoRA rank that is accepted, 1 to 256.", _integer, "RANK", E, "max_rank"),
    Option("kv-cache-memory", "Memory of the KV cache.", quantity_bytes, "QUANTITY", E, "kv_cache_memory_bytes",
           "1Gi on CPU; on CUDA what is free"),
    Option("host-cache", "Host memory that may hold adapters.", quantity_bytes, "QUANTITY", E, "host_cache_bytes"),
    Option("prefix-caching", "Reuse the KV cache of equal beginnings.", _boolean, "", E, "prefix_caching", is_flag=True),
    Option("unknown-config-fields", "An adapter whose config has a field, not empty, that no PEFT of today knows: refuse, or "
           "ignore the field.", _choice(*get_args(UnknownFields)), "HOW", E, "unknown_config_fields"),
    Option("load-on-demand", "Load a known adapter when a request names it.", _boolean, "", E, "load_on_demand",
           is_flag=True),
    Option("num-threads", "CPU threads of the engine.", _integer, "NUMBER", E, "num_threads", "the cores it may use"),
    Option("cpu-kernels", "On a CPU, compile kernels at the start; without, plain torch computes everything, more slowly.",
           _boolean, "", E, "cpu_kernels", is_flag=True),
    Option("max-step-seconds", "An engine that gives no sign of life for so long hangs: it is ended, its stack in the log, and "
           "the pod with it.", _seconds, "SECONDS", E, "max_step_seconds"),
    Option("cache-dir", "Folder for downloaded models and adapters, and for compiled kernels.", Path, "FOLDER", None, "cache_dir",
           f"{CACHE_DIR} if writable, else $XDG_CACHE_HOME/lorafleet/inference"),
    Option("disk-cache", "Disk space that downloaded adapters may take.", quantity_bytes, "QUANTITY", S, "disk_cache_bytes"),
    Option("volumes-dir", "Folder whose subfolders are the volumes of declared sources.", Path, "FOLDER", S, "volumes_dir"),
    Option("credentials-dir", "Folder whose subfolders hold the credentials of declared sources.", Path, "FOLDER", S,
           "credentials_dir"),
    Option("max-waiting-requests", "Sequences that may wait for their first token; beyond that a model that has more "
           "than its equal share is answered 429.", _integer, "NUMBER", S, "max_waiting_requests"),
    Option("adapter-hold-seconds", "How long a request waits for its adapter before 503.", _seconds, "SECONDS", S,
           "adapter_hold_seconds"),
    Option("drain-grace-seconds", "How long new requests are still answered after SIGTERM.", _seconds, "SECONDS", S,
           "drain_grace_seconds"),
    Option("drain-timeout-seconds", "How long running requests may go on after that.", _seconds, "SECONDS", S,
           "drain_timeout_seconds"),
    Option("ready-timeout-seconds", "After this the pod is ready even if adapters of the start are not.", _seconds,
           "SECONDS", S, "ready_timeout_seconds"),
    Option("wait-for-catalogue", "Be ready only after the operator's first catalogue came (or the timeout).", _boolean, "",
           S, "wait_for_catalogue", is_flag=True),
    Option("vllm-lora-routes", "Offer /v1/load_lora_adapter and /v1/unload_lora_adapter on the admin port.", _boolean, "",
           S, "vllm_lora_routes", is_flag=True),
    Option("max-body", "Largest request body.", quantity_bytes, "QUANTITY", S, "max_body_bytes"),
    Option("log-level", "debug, info, warning or error.", _choice("debug", "info", "warning", "error"), "LEVEL", None,
           "log_level", "info"),
    Option("log-format", "text or json.", _choice(*get_args(LogFormat)), "FORMAT", None, "log_format", "text"),
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options, each with its variable and its default in the help."""
    for option in OPTIONS:
        text = f"{option.help} [{option.variable}; default: {option.shown_default}]".replace("%", "%%")
        if option.is_flag:
            action: Any = argparse.BooleanOptionalAction
            parser.add_argument(option.flag, dest=option.field, default=None, action=action, help=text)
        elif option.is_list:
            parser.add_argument(option.flag, dest=option.field, action="append", metavar=option.metavar, help=text)
        else:
            parser.add_argument(option.flag, dest=option.field, metavar=option.metavar, help=text)


@dataclass(frozen=True, slots=True)
class Values:
    """What flags and environment said, parsed; absent options are absent."""

    given: Mapping[str, Any]

    def of(self, config: type[EngineConfig] | type[ServerConfig] | None) -> dict[str, Any]:
        """Return the values for one configuration object."""
        mine = {option.field for option in OPTIONS if option.config is config}
        return {name: value for name, value in self.given.items() if name in mine}


def read_values(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Values:
    """Return the values of all options that were given.

    Raises:
        ConfigError: a value is bad, or a variable is no option; names it as it was written.
    """
    _refuse_unknown(environment)
    given: dict[str, Any] = {}
    for option in OPTIONS:
        flag = getattr(arguments, option.field)
        variable = environment.get(option.variable, "")
        if flag is not None:
            given[option.field] = flag if option.is_flag else _parse(option, option.flag, flag)
        elif variable and not _LINK_VALUE.match(variable):
            texts = variable.split(",") if option.is_list else variable
            given[option.field] = _parse(option, option.variable, texts)
    return Values(given)


def _parse(option: Option, written: str, text: str | Sequence[str]) -> Any:
    try:
        return option.parse(text) if isinstance(text, str) else tuple(option.parse(item.strip()) for item in text)
    except ValueError as error:
        raise ConfigError(written, str(error)) from None


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {option.variable for option in OPTIONS} | FOR_OTHERS
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name in known or name.startswith(f"{PREFIX}TEST_"):
            continue
        if not _SERVICE_LINK.search(name):
            raise ConfigError(name, "is no option of this program; see --help")


def describe() -> str:
    """Return the table of all options in Markdown, for docs/reference/cli.md."""
    lines = ["| option | variable | default | meaning |", "|---|---|---|---|"]
    for option in OPTIONS:
        flag = f"--[no-]{option.name}" if option.is_flag else f"{option.flag} {option.metavar}"
        default = option.shown_default if option.default_text else f"`{option.shown_default}`"
        lines.append(f"| `{flag}` | `{option.variable}` | {default} | {option.help} |")
    return "\n".join(lines) + "\n"
