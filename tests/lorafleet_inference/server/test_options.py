"""Flags and variables: parsed, checked, and named when they are wrong."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from lorafleet_common.errors import ConfigError
from lorafleet_common.options import add_options, read_values
from lorafleet_inference.config import EngineConfig, ServerConfig
from lorafleet_inference.options import OPTIONS


def values(*arguments: str, **environment: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser, OPTIONS)
    return dict(read_values(OPTIONS, parser.parse_args(arguments), environment).given)


def test_a_flag_wins_over_its_variable() -> None:
    assert values("--max-rank=8", LORAFLEET_MAX_RANK="16") == {"max_rank": 8}
    assert values(LORAFLEET_MAX_RANK="16") == {"max_rank": 16}
    assert values(LORAFLEET_MAX_RANK="") == {}


def test_quantities_booleans_and_lists() -> None:
    given = values(
        "--host-cache=4Gi",
        "--no-prefix-caching",
        "--adapter=a=/x",
        "--adapter=b=hf:o/r@main",
        LORAFLEET_LOAD_ON_DEMAND="false",
        LORAFLEET_KV_CACHE_MEMORY="128Mi",
    )
    assert given == {
        "host_cache_bytes": 4 << 30,
        "kv_cache_memory_bytes": 128 << 20,
        "prefix_caching": False,
        "load_on_demand": False,
        "adapters": (("a", "/x"), ("b", "hf:o/r@main")),
    }
    assert values(LORAFLEET_ADAPTER="a=/x, b=s3://k/p")["adapters"] == (("a", "/x"), ("b", "s3://k/p"))


def test_declared_sources_are_a_json_list() -> None:
    text = '[{"name": "bucket", "s3": {"bucket": "models"}}, {"name": "pvc", "volume": {"claimName": "c"}}]'
    sources = values(LORAFLEET_ADAPTER_SOURCES=text)["adapter_sources"]
    assert [source.name for source in sources] == ["bucket", "pvc"]


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"LORAFLEET_MAX_RNAK": "8"}, "LORAFLEET_MAX_RNAK"),
        ({"LORAFLEET_MAX_RANK": "eight"}, "LORAFLEET_MAX_RANK"),
        ({"LORAFLEET_DEVICE": "gpu"}, "LORAFLEET_DEVICE"),
        ({"LORAFLEET_HOST_CACHE": "4 gigs"}, "LORAFLEET_HOST_CACHE"),
        ({"LORAFLEET_LOAD_ON_DEMAND": "maybe"}, "LORAFLEET_LOAD_ON_DEMAND"),
        ({"LORAFLEET_ADAPTER_SOURCES": '[{"name": "x"}]'}, "LORAFLEET_ADAPTER_SOURCES"),
        ({"LORAFLEET_ADAPTER": "roman"}, "LORAFLEET_ADAPTER"),
    ],
)
def test_bad_variables_are_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values(**environment)
    assert caught.value.option == named


def test_what_kubernetes_adds_for_services_of_our_names_is_passed_over() -> None:
    links = {
        "LORAFLEET_PORT": "tcp://10.0.0.1:80",
        "LORAFLEET_PORT_80_TCP": "tcp://10.0.0.1:80",
        "LORAFLEET_PORT_80_TCP_ADDR": "10.0.0.1",
        "LORAFLEET_SERVICE_HOST": "10.0.0.1",
        "LORAFLEET_GATEWAY_SERVICE_PORT_HTTP": "80",
        "LORAFLEET_GATEWAY_PORT": "tcp://10.0.0.2:80",
        "LORAFLEET_URL": "http://127.0.0.1:8080",
    }
    assert values(**links) == {}


def test_every_option_sets_an_existing_value_and_has_a_default() -> None:
    for option in OPTIONS:
        if option.config is not None:
            assert option.field in option.config.__dataclass_fields__
        assert option.shown_default, option.flag


def test_every_configuration_value_has_an_option() -> None:
    settable = {(option.config, option.field) for option in OPTIONS}
    made = {
        (EngineConfig, "model"),
        (EngineConfig, "kernel_cache"),
        (EngineConfig, "speculative_model"),  # found as the base model is, by --speculative-model
        (ServerConfig, "engine"),
        (ServerConfig, "served_name"),
        (ServerConfig, "cache_dir"),
    }
    for config in (EngineConfig, ServerConfig):
        for name in config.__dataclass_fields__:
            assert (config, name) in settable | made


@pytest.mark.parametrize("field", ["max_rank", "max_batch_tokens", "host_cache_bytes"])
def test_values_out_of_range_are_named(field: str) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        EngineConfig(model="m", **{field: 0})


def test_relative_folders_are_taken_as_given() -> None:
    assert values("--cache-dir=some/where") == {"cache_dir": Path("some/where")}
