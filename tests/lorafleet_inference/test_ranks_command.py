"""The configuration of a further host, from its options and what LeaderWorkerSet tells its pod."""

from pathlib import Path

import pytest

from lorafleet_common.errors import ConfigError
from lorafleet_inference.cli import _parser
from lorafleet_inference.ranks_command import RanksConfig, ranks_config

LWS = {"LWS_LEADER_ADDRESS": "base-0.base-0.ns", "LWS_WORKER_INDEX": "2", "LWS_GROUP_SIZE": "3"}
SECRET = {"LORAFLEET_RANKS_SECRET": "s"}


def config_of(tmp_path: Path, *options: str, **environment: str) -> RanksConfig:
    own = (f"--model={tmp_path}", "--hosts=3", "--tensor-parallel-size=6", f"--cache-dir={tmp_path}")
    return ranks_config(_parser().parse_args(["ranks", *own, *options]), SECRET | environment)


def test_a_pod_of_a_leader_worker_set_needs_to_be_told_nothing_more(tmp_path: Path) -> None:
    config = config_of(tmp_path, **LWS, LORAFLEET_POD_NAME="base-0-2")
    assert (config.leader, config.leader_port, config.index, config.name) == ("base-0.base-0.ns", 8004, 2, "base-0-2")
    assert (config.base.engine.hosts, config.base.engine.ranks_per_host, config.base.engine.ranks_secret) == (3, 2, "s")


def test_options_of_the_api_may_stand_there_as_they_do_for_the_one_that_serves(tmp_path: Path) -> None:
    config = config_of(tmp_path, "--wait-for-catalogue", "--max-waiting-requests=7", **LWS, LORAFLEET_ADMIN_PORT="9")
    assert config.index == 2


@pytest.mark.parametrize(
    ("leader", "address", "port"),
    [
        ("host", "host", 8004),
        ("host:1", "host", 1),
        ("10.0.0.1:2", "10.0.0.1", 2),
        ("fd00::1", "fd00::1", 8004),
        ("[fd00::1]", "fd00::1", 8004),
        ("[fd00::1]:3", "fd00::1", 3),
    ],
)
def test_the_leader_is_an_address_with_or_without_port(tmp_path: Path, leader: str, address: str, port: int) -> None:
    config = config_of(tmp_path, f"--leader={leader}", "--host-index=1")
    assert (config.leader, config.leader_port) == (address, port)


@pytest.mark.parametrize(
    ("options", "environment", "option"),
    [
        (("--host-index=1",), {}, "--leader"),
        (("--leader=host",), {}, "--host-index"),
        (("--leader=host:x", "--host-index=1"), {}, "--leader"),
        (("--leader=host", "--host-index=3"), {}, "--host-index"),
        ((), LWS | {"LWS_WORKER_INDEX": "0"}, "--host-index"),
        (("--hosts=4",), LWS, "--hosts"),
        ((), LWS | {"LORAFLEET_RANKS_SECRET": ""}, "--ranks-secret"),
        (("--ranks-port=65536",), LWS, "--ranks-port"),
    ],
)
def test_what_is_missing_or_bad_is_named(
    tmp_path: Path, options: tuple[str, ...], environment: dict[str, str], option: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, *options, **environment)
    assert caught.value.option == option
