"""Options: flags, variables, defaults, and what stops the process."""

import pytest

from lorafleet_common.errors import ConfigError
from lorafleet_gateway.config import OPTIONS, GatewayConfig, read_config


def test_defaults() -> None:
    assert read_config([], {}) == GatewayConfig()


def test_flags_win_over_variables() -> None:
    environment = {"LORAFLEET_PORT": "9000", "LORAFLEET_MAX_BODY": "1Mi", "LORAFLEET_WATCH_NAMESPACES": "a, b"}
    config = read_config(["--port", "9001"], environment)
    assert (config.port, config.max_body_bytes, config.watch_namespaces) == (9001, 1 << 20, ("a", "b"))


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_reaches_the_configuration(option) -> None:
    text = {
        "host": "::1",
        "watch-namespaces": "team",
        "max-body": "7Ki",
        "max-held-bodies": "7Gi",
        "log-level": "debug",
        "log-format": "json",
    }
    given = text.get(option.name, "true" if option.is_flag else "7")
    flags = [option.flag] if option.is_flag else [option.flag, given]
    by_flag, by_variable = read_config(flags, {}), read_config([], {option.variable: given})
    assert by_flag == by_variable
    assert getattr(by_flag, option.field) != getattr(GatewayConfig(), option.field)


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--port", "x"], {}, "--port"),
        (["--port", "70000"], {}, "--port"),
        (["--max-attempts", "0"], {}, "--max-attempts"),
        (["--watch-namespaces", "Not_A_Name"], {}, "--watch-namespaces"),
        (["--log-level", "loud"], {}, "--log-level"),
        (["--idle-timeout-seconds", "nan"], {}, "--idle-timeout-seconds"),
        ([], {"LORAFLEET_MAX_BODY": "0"}, "LORAFLEET_MAX_BODY"),
        (["--max-body", "1Gi"], {}, "--max-held-bodies"),
        ([], {"LORAFLEET_PROT": "8000"}, "LORAFLEET_PROT"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(arguments, environment)
    assert caught.value.option == named


def test_variables_of_services_and_shells_are_passed_over() -> None:
    links = {
        "LORAFLEET_PORT": "tcp://10.0.0.1:80",
        "LORAFLEET_SERVICE_HOST": "10.0.0.1",
        "LORAFLEET_GATEWAY_SERVICE_PORT_HTTP": "80",
        "LORAFLEET_GATEWAY_PORT_80_TCP_ADDR": "10.0.0.1",
        "LORAFLEET_URL": "http://x",
        "LORAFLEET_TEST_CLUSTER": "test",
        "OTHER": "1",
    }
    assert read_config([], links) == GatewayConfig()


def test_an_unknown_flag_stops(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_config(["--prot", "8000"], {})
    assert caught.value.code == 2
    assert "--prot" in capsys.readouterr().err
