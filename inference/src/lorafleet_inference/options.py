"""Every option of `serve` in one table."""

import os
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from lorafleet_common.logs import LogFormat
from lorafleet_common.options import LOG_LEVELS, Option, any_seconds, boolean, integer, one_of
from lorafleet_common.options import describe as described
from lorafleet_contract.names import CACHE_DIR
from lorafleet_contract.quantities import quantity_bytes
from lorafleet_contract.sources import AdapterSource
from lorafleet_inference.config import (
    AdHocAdapters,
    DecoderChoice,
    DeviceChoice,
    DtypeChoice,
    EngineConfig,
    KvCacheDtype,
    Quantization,
    ReasoningParser,
    ServerConfig,
    ToolCallParser,
    UnknownFields,
)


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
    Option("model", "Folder with config.json, tokenizer.json and safetensors weights, a hub repository, or s3://BUCKET/PREFIX.", str,
           "PATH_OR_ID", None, "model", "required"),
    Option("model-revision", "Branch, tag or commit of the hub repository.", str, "REV", None, "model_revision", "main"),
    Option("model-s3-endpoint", "URL of the S3 server of --model.", str, "URL", None, "model_s3_endpoint", "as AWS's libraries find it"),
    Option("model-s3-region", "AWS region of the bucket of --model.", str, "REGION", None, "model_s3_region",
           "as AWS's libraries find it"),
    Option("served-name", "Name under which the base model answers.", str, "NAME", None, "served_name",
           "last part of --model"),
    Option("adapter", "An adapter to load at the start: NAME=FOLDER, NAME=hf:REPO[@REVISION], NAME=s3://BUCKET/PREFIX or "
           "NAME=oci://HOST/REPO[:TAG|@DIGEST]. May be given several times; in the variable, commas separate.", _adapter,
           "NAME=SOURCE", S, "adapters", "none", is_list=True),
    Option("adapter-sources", "Declared sources, from which the admin API may load: a JSON list as "
           "BaseModelDeployment.spec.adapterSources.", _sources, "JSON", S, "adapter_sources", "none"),
    Option("host", "Address of the public port.", str, "ADDRESS", S, "host"),
    Option("port", "Public port; 0 takes a free one.", integer, "PORT", S, "port"),
    Option("admin-host", "Address of the admin port; without a token always loopback.", str, "ADDRESS", S, "admin_host"),
    Option("admin-port", "Admin port; 0 takes a free one.", integer, "PORT", S, "admin_port"),
    Option("admin-token-file", "File with the bearer token of the admin port.", Path, "FILE", S, "admin_token_file",
           "no token, loopback only"),
    Option("admin-token-sha256", "SHA-256 of the bearer token of the admin port, in hex: what a pod has to know of it.", _sha256,
           "HEX", S, "admin_token_sha256", "none"),
    Option("keys-file", "File of hashed keys: requests on the public port need one of them. It is read again when it changes.",
           Path, "FILE", S, "keys_file", "no keys are asked for"),
    Option("pod-name", "Name of this pod in the header x-lorafleet-pod.", str, "NAME", S, "pod_name"),
    Option("device", "Where the model runs: auto, cpu or cuda.", one_of(*get_args(DeviceChoice)), "DEVICE", E, "device"),
    Option("dtype", "Number format of weights and activations: auto, float32, bfloat16 or float16.",
           one_of(*get_args(DtypeChoice)), "DTYPE", E, "dtype"),
    Option("quantization", "To what the weights of linear layers, but the output head, are quantised when the base is read: int8, int4, "
           "fp8 or nf4. A base that is quantised already is served as it is, without this.", one_of(*get_args(Quantization)),
           "KIND", E, "quantization", "not at all"),
    Option("decoder", "Whose code computes the layers of the model: transformers, own (refused for a model that has none), or auto: "
           "our own where there is one for the model and it was measured to be faster: on GPUs, and on a CPU in float32.",
           one_of(*get_args(DecoderChoice)), "WHOSE", E, "decoder"),
    Option("tensor-parallel-size", "Ranks that the model is split among: processes, each with a GPU of its own (or on a CPU "
           "with its share of --num-threads). Memory that other options give is of each rank. Not for every model.", integer,
           "NUMBER", E, "tensor_parallel_size"),
    Option("hosts", "Hosts that the ranks are divided among, evenly. This one has the first ranks; on the others runs "
           "`lorafleet-inference ranks` with the same options.", integer, "NUMBER", E, "hosts"),
    Option("ranks-host", "Address at which the other hosts are awaited.", str, "ADDRESS", E, "ranks_host"),
    Option("ranks-port", "Port at which the other hosts are awaited.", integer, "PORT", E, "ranks_port"),
    Option("ranks-secret", "What all hosts of the model have to know; better given as the variable, as command lines can be read.",
           str, "TEXT", E, "ranks_secret", "none; required with several hosts"),
    Option("join-timeout-seconds", "How long the other hosts are awaited, and how long they try.", any_seconds, "SECONDS", E,
           "join_timeout_seconds"),
    Option("max-model-len", "Tokens of prompt and answer together; cut to what the KV cache holds.", integer, "TOKENS", E, "max_model_len",
           "what the model's config says"),
    Option("max-batch-tokens", "Tokens that one step computes at most.", integer, "TOKENS", E, "max_batch_tokens"),
    Option("target-step-ms", "How long a step should take at most while an adapter (or the base) that asks for little is there "
           "beside others that ask for much: who comes waits for the step that runs. The engine learns from its steps how "
           "many tokens fit. Where all ask for alike, a step may take ten times as long.", _milliseconds, "MS", E, "target_step_ms"),
    Option("max-batch-requests", "Sequences that run at the same time.", integer, "NUMBER", E, "max_batch_requests"),
    Option("max-resident-adapters", "Adapters in device memory.", integer, "NUMBER", E, "max_resident_adapters"),
    Option("max-rank", "Largest LoRA rank that is accepted, 1 to 256.", integer, "RANK", E, "max_rank"),
    Option("kv-cache-dtype", "How keys and values are kept: auto (in the dtype of the model) or fp8 (e4m3, with a factor for each token "
           "and head): about twice as many tokens in the same memory, and half as much to read in a step.",
           one_of(*get_args(KvCacheDtype)), "KIND", E, "kv_cache_dtype"),
    Option("kv-cache-memory", "Memory of the KV cache.", quantity_bytes, "QUANTITY", E, "kv_cache_memory_bytes",
           "1Gi on CPU; on CUDA what is free"),
    Option("adapter-memory", "Device memory of adapters, which share it by their own ranks and modules; all that they hold lies in it. An "
           "adapter of --max-rank has to fit.",
           quantity_bytes, "QUANTITY", E, "adapter_memory_bytes",
           "what --max-resident-adapters of --max-rank take; on CUDA at most a quarter of what the weights leave"),
    Option("host-cache", "Host memory that may hold adapters.", quantity_bytes, "QUANTITY", E, "host_cache_bytes"),
    Option("prefix-caching", "Reuse the KV cache of equal beginnings.", boolean, "", E, "prefix_caching", is_flag=True),
    Option("unknown-config-fields", "An adapter whose config has a field, not empty, that no PEFT of today knows: refuse, or "
           "ignore the field.", one_of(*get_args(UnknownFields)), "HOW", E, "unknown_config_fields"),
    Option("load-on-demand", "Load a known adapter when a request names it.", boolean, "", E, "load_on_demand",
           is_flag=True),
    Option("num-threads", "CPU threads of the engine.", integer, "NUMBER", E, "num_threads", "the cores it may use"),
    Option("cpu-kernels", "On a CPU, compile kernels at the start; without, plain torch computes everything, more slowly.",
           boolean, "", E, "cpu_kernels", is_flag=True),
    Option("gpu-kernels", "On CUDA, Triton kernels compute attention and LoRA; without, plain torch does.",
           boolean, "", E, "gpu_kernels", is_flag=True),
    Option("cuda-graphs", "Capture steps at the start where the Triton kernels compute them.", boolean, "", E, "cuda_graphs",
           is_flag=True),
    Option("dependent-launch", "On NVIDIA GPUs of compute capability 9.0 and newer, kernels of LoRA, norms and the gate begin before the "
           "launch ahead of them is done, and load the first weights till then (programmatic dependent launch). The answers are the "
           "same. No GPU has measured it yet.", boolean, "", E, "dependent_launch", is_flag=True),
    Option("speculative-tokens", "Tokens that a step may draft of each answer: what is right of them stands, and the answer is the same as "
           "without. They are looked up in what the answer and its prompt have had before (n-gram speculation), unless there is a "
           "--speculative-model. 0: none.", integer, "NUMBER", E, "speculative_tokens"),
    Option("speculative-model", "A small model of the same vocabulary that proposes the tokens: a folder, a hub repository (ID or "
           "ID@REVISION), or s3://BUCKET/PREFIX with the server and region of --model.", str, "PATH_OR_ID", None, "speculative_model",
           "they are looked up"),
    Option("max-step-seconds", "An engine that gives no sign of life for so long hangs: it is ended, its stack in the log, and "
           "the pod with it.", any_seconds, "SECONDS", E, "max_step_seconds"),
    Option("cache-dir", "Folder for downloaded models and adapters, and for compiled kernels.", Path, "FOLDER", None, "cache_dir",
           f"{CACHE_DIR} if writable, else $XDG_CACHE_HOME/lorafleet/inference"),
    Option("disk-cache", "Disk space that downloaded adapters may take.", quantity_bytes, "QUANTITY", S, "disk_cache_bytes"),
    Option("volumes-dir", "Folder whose subfolders are the volumes of declared sources.", Path, "FOLDER", S, "volumes_dir"),
    Option("credentials-dir", "Folder whose subfolders hold the credentials of declared sources.", Path, "FOLDER", S,
           "credentials_dir"),
    Option("max-waiting-requests", "Sequences that may wait for their first token; beyond that a model that has more "
           "than its equal share is answered 429.", integer, "NUMBER", S, "max_waiting_requests"),
    Option("max-merged-adapters", "Merges of adapters that are kept after a request asked for them (merged_adapters of LoRAX's "
           "routes); the least recently used one leaves. 0: none are made.", integer, "NUMBER", S, "max_merged_adapters"),
    Option("ad-hoc-adapters", "Whether requests of LoRAX's API may name adapters that no catalogue has, by adapter_id and "
           "adapter_source: forbidden, or sources (inside --adapter-sources).", one_of(*get_args(AdHocAdapters)), "WHICH", S,
           "ad_hoc_adapters"),
    Option("max-ad-hoc-adapters", "Of these, how many are kept; the least recently used one leaves.", integer, "NUMBER", S,
           "max_ad_hoc_adapters"),
    Option("adapter-hold-seconds", "How long a request waits for its adapter before 503.", any_seconds, "SECONDS", S,
           "adapter_hold_seconds"),
    Option("drain-grace-seconds", "How long new requests are still answered after SIGTERM.", any_seconds, "SECONDS", S,
           "drain_grace_seconds"),
    Option("drain-timeout-seconds", "How long running requests may go on after that.", any_seconds, "SECONDS", S,
           "drain_timeout_seconds"),
    Option("ready-timeout-seconds", "After this the pod is ready even if adapters of the start are not.", any_seconds,
           "SECONDS", S, "ready_timeout_seconds"),
    Option("wait-for-catalogue", "Be ready only after the operator's first catalogue came (or the timeout).", boolean, "",
           S, "wait_for_catalogue", is_flag=True),
    Option("unknown-fields", "Fields of requests that nobody knows: refuse with 400, or ignore, with one line in the log and "
           "a count a name.", one_of(*get_args(UnknownFields)), "HOW", S, "unknown_fields"),
    Option("request-chat-templates", "Requests may bring a chat_template of their own; it is rendered as those of adapters "
           "are, in a process with limits.", boolean, "", S, "request_chat_templates", is_flag=True),
    Option("tool-call-parser", "How the models write calls of tools: hermes, mistral, llama, auto (as their chat template "
           "shows it) or none.", one_of(*get_args(ToolCallParser)), "NAME", S, "tool_call_parser"),
    Option("reasoning-parser", "Tell reasoning between tags of the chat template from the answer, as reasoning_content: auto "
           "or none.", one_of(*get_args(ReasoningParser)), "NAME", S, "reasoning_parser"),
    Option("vllm-lora-routes", "Offer /v1/load_lora_adapter and /v1/unload_lora_adapter on the admin port.", boolean, "",
           S, "vllm_lora_routes", is_flag=True),
    Option("max-body", "Largest request body.", quantity_bytes, "QUANTITY", S, "max_body_bytes"),
    Option("answer-memory", "Memory, by estimate, of what all answers hold until it is sent: answers that are sent whole, and streams "
           "that nobody reads. Beyond that the request that has most of it ends with 429.", quantity_bytes, "QUANTITY", S,
           "answer_memory_bytes"),
    Option("max-connections", "Connections of each port. One more closes the one that has waited for its client the longest, and "
           "is answered 503 where all are being answered.", integer, "NUMBER", S, "max_connections"),
    Option("client-timeout-seconds", "How long a client may take for the head of a request, for each piece of its body (408), "
           "and for each piece of the answer that it reads.", any_seconds, "SECONDS", S, "client_timeout_seconds"),
    Option("log-level", "debug, info, warning or error.", one_of(*LOG_LEVELS), "LEVEL", None,
           "log_level", "info"),
    Option("log-format", "text or json.", one_of(*get_args(LogFormat)), "FORMAT", None, "log_format", "text"),
)  # fmt: skip


RANKS_OPTIONS: tuple[Option, ...] = (
    Option("leader", "The host with the engine: ADDRESS or ADDRESS:PORT.", str, "ADDRESS", None, "leader",
           "$LWS_LEADER_ADDRESS, port of --ranks-port"),
    Option("host-index", "Which of the hosts this is, from 1 on.", integer, "NUMBER", None, "host_index", "$LWS_WORKER_INDEX"),
    Option("host", "Address of the port with /health.", str, "ADDRESS", S, "host"),
    Option("port", "Port with /health; 0 takes a free one.", integer, "PORT", S, "port"),
    *(one for one in OPTIONS if one.name not in ("host", "port")),
)  # fmt: skip
"""Of `ranks`: its own, and those of `serve`, so that both may be started alike. Those of the engine have to be as the engine has them,
but for what is a host's own; those of the API have nothing to do there."""


def describe() -> str:
    """Return the table of all options in Markdown, for docs/reference/cli.md."""
    return described(OPTIONS)


def describe_ranks() -> str:
    """Return the table of those options of `ranks` that `serve` has not, or has in another sense."""
    return described(RANKS_OPTIONS[:4])
