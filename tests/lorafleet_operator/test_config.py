"""Options: each by flag and by variable, and whatever is wrong is named."""

import re
from pathlib import Path

import pytest

from lorafleet_common.errors import ConfigError
from lorafleet_operator import cli
from lorafleet_operator.config import OPTIONS, OperatorConfig, read_config

NEEDED = ["--engine-image", "engine:1", "--namespace", "system"]
README = Path(__file__).resolve().parents[2] / "operator" / "README.md"


def test_defaults() -> None:
    config = read_config([*NEEDED, "--pod-name", "op-0"], {})
    assert config == OperatorConfig(engine_image="engine:1", namespace="system", pod_name="op-0")


def test_flag_wins_over_variable() -> None:
    environment = {"LORAFLEET_WORKERS": "7", "LORAFLEET_WATCH_NAMESPACES": "a, b", "LORAFLEET_LOG_FORMAT": "json"}
    config = read_config([*NEEDED, "--workers", "3"], environment)
    assert (config.workers, config.watch_namespaces, config.log_format) == (3, ("a", "b"), "json")


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        ([], {}, "--engine-image: is required"),
        (["--engine-image", "x"], {}, "--namespace: is required"),
        ([*NEEDED, "--workers", "0"], {}, "--workers: 0 is not between 1 and 64"),
        ([*NEEDED, "--workers", "x"], {}, "--workers: 'x' is no whole number"),
        ([*NEEDED, "--resync-seconds", "0.1"], {}, "--resync-seconds: 0.1 is not between 1 and 3600"),
        ([*NEEDED, "--log-level", "loud"], {}, "--log-level: 'loud' is none of debug, info, warning, error"),
        ([*NEEDED, "--lease", "Not A Name"], {}, "--lease: 'Not A Name' is no name of a Kubernetes object"),
        ([*NEEDED, "--gateway-selector", "a=b,c"], {}, "--gateway-selector: 'c' is not LABEL=VALUE"),
        ([*NEEDED, "--gateway-port", "0"], {}, "--gateway-port: 0 is not between 1 and 65535"),
        (
            [*NEEDED, "--prometheus-url", "http://me@p"],
            {},
            "--prometheus-url: 'http://me@p' is no http or https URL without credentials and query",
        ),
        (NEEDED, {"LORAFLEET_HTTP_PORT": "70000"}, "LORAFLEET_HTTP_PORT: 70000 is not between 0 and 65535"),
        (NEEDED, {"LORAFLEET_WORKER": "3"}, "LORAFLEET_WORKER: is no option of this program; see --help"),
    ],
)
def test_wrong_option_is_named(arguments: list[str], environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(arguments, environment)
    assert str(error.value) == named


def test_selector_is_of_equal_labels() -> None:
    selector = "app.kubernetes.io/name=lorafleet, app.kubernetes.io/component=gateway"
    config = read_config([*NEEDED, "--gateway-selector", selector], {"LORAFLEET_GATEWAY_PORT": "tcp://10.0.0.1:80"})
    assert config.gateway_selector == "app.kubernetes.io/name=lorafleet,app.kubernetes.io/component=gateway"
    assert config.gateway_port == 8002, "that of a Service named lorafleet-gateway is none of ours"
    assert read_config([*NEEDED, "--gateway-selector", ""], {}).gateway_selector == ""


def test_variables_of_service_links_and_of_the_users_shell_are_let_be() -> None:
    environment = {"LORAFLEET_GATEWAY_SERVICE_HOST": "10.0.0.1", "LORAFLEET_GATEWAY_PORT": "tcp://10.0.0.1:80"}
    of_others = {**environment, "LORAFLEET_URL": "http://x", "LORAFLEET_TEST_KEEP": "1"}
    assert read_config(NEEDED, of_others) == read_config(NEEDED, {})


def test_readme_lists_every_option_with_its_default() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+) ([A-Z]+)` \| `([A-Z_]+)` \| (.+?) \|", README.read_text(), re.MULTILINE)
    assert [(flag, metavar, variable) for flag, metavar, variable, _ in rows] == [
        (option.flag, option.metavar, option.variable) for option in OPTIONS
    ]
    config = read_config(NEEDED, {})
    for flag, _, _, default in rows:
        value = getattr(config, flag[2:].replace("-", "_"))
        if default.startswith("`"):
            assert default.strip("`") == f"{value:g}" if isinstance(value, float) else str(value)


def test_command_line_says_what_is_wrong_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--engine-image", "x", "--namespace", "Not Good"]) == 2
    assert capsys.readouterr().err.startswith("lorafleet-operator: --namespace: 'Not Good'")
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--no-such-option"])
    assert ended.value.code == 2
