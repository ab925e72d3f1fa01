"""Options of a program in one table: flag, environment variable, default, meaning.

`--max-rank 32` and `LORAFLEET_MAX_RANK=32` say the same; the flag wins. A variable that begins with LORAFLEET_ and is no
option stops the process as an unknown flag does.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final

from lorafleet_common.errors import ConfigError
from lorafleet_contract.quantities import quantity_bytes

PREFIX: Final = "LORAFLEET_"
FOR_OTHERS: Final = frozenset({"LORAFLEET_URL", "LORAFLEET_REGISTRY", "LORAFLEET_TAG"})
"""Variables of the project that the shell of a user may hold and that are not ours to judge; so is LORAFLEET_TEST_*."""
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
"""Kubernetes adds such variables for every Service of the namespace, also for those named lorafleet-…."""
_LINK_VALUE = re.compile(r"^(tcp|udp|sctp)://")
"""A Service named `lorafleet` makes LORAFLEET_PORT, which is an option too: the value tells them apart."""
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

Parse = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `config` and `field` say which value of the configuration it sets; its default stands there."""

    name: str
    help: str
    parse: Parse
    metavar: str
    config: type[Any] | None
    """A dataclass; None where the program makes more of the value than a field."""
    field: str
    default_text: str | None = None
    """For people, where the default is not a plain value."""
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
        if self.parse in (quantity_bytes, num_bytes):
            return _as_quantity(default)
        if self.is_flag:
            return "on" if default else "off"
        return f"{default:g}" if isinstance(default, float) else str(default)


@dataclass(frozen=True, slots=True)
class Values:
    """What flags and environment said, parsed; absent options are absent."""

    given: Mapping[str, Any]
    _options: Sequence[Option]

    def of(self, config: type[Any] | None) -> dict[str, Any]:
        """Return the values for one configuration object."""
        mine = {option.field for option in self._options if option.config is config}
        return {name: value for name, value in self.given.items() if name in mine}


def add_options(parser: argparse.ArgumentParser, options: Sequence[Option]) -> None:
    """Add all options, each with its variable and its default in the help."""
    for option in options:
        text = f"{option.help} [{option.variable}; default: {option.shown_default}]".replace("%", "%%")
        if option.is_flag:
            action: Any = argparse.BooleanOptionalAction
            parser.add_argument(option.flag, dest=option.field, default=None, action=action, help=text)
        elif option.is_list:
            parser.add_argument(option.flag, dest=option.field, action="append", metavar=option.metavar, help=text)
        else:
            parser.add_argument(option.flag, dest=option.field, metavar=option.metavar, help=text)


def read_values(options: Sequence[Option], arguments: argparse.Namespace, environment: Mapping[str, str]) -> Values:
    """Return the values of all options that were given.

    Raises:
        ConfigError: a value is bad, or a variable is no option; names it as it was written.
    """
    _refuse_unknown(options, environment)
    given: dict[str, Any] = {}
    for option in options:
        flag = getattr(arguments, option.field)
        variable = environment.get(option.variable, "")
        if flag is not None:
            given[option.field] = flag if option.is_flag else _parse(option, option.flag, flag)
        elif variable and not _LINK_VALUE.match(variable):
            texts = variable.split(",") if option.is_list else variable
            given[option.field] = _parse(option, option.variable, texts)
    return Values(given, options)


def describe(options: Sequence[Option]) -> str:
    """Return the table of all options in Markdown, for the reference pages."""
    lines = ["| option | variable | default | meaning |", "|---|---|---|---|"]
    for option in options:
        flag = f"--[no-]{option.name}" if option.is_flag else f"{option.flag} {option.metavar}"
        default = option.shown_default if option.default_text else f"`{option.shown_default}`"
        lines.append(f"| `{flag}` | `{option.variable}` | {default} | {option.help} |")
    return "\n".join(lines) + "\n"


def number(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return what reads a whole number between two bounds."""

    def parse(text: str) -> int:
        value = integer(text)
        if not minimum <= value <= maximum:
            raise ValueError(f"{value} is not between {minimum} and {maximum}")
        return value

    return parse


def seconds(minimum: float, maximum: float) -> Callable[[str], float]:
    """Return what reads a number of seconds between two bounds."""

    def parse(text: str) -> float:
        value = any_seconds(text)
        if not minimum <= value <= maximum:
            raise ValueError(f"{value:g} is not between {minimum:g} and {maximum:g}")
        return value

    return parse


def one_of(*values: str) -> Callable[[str], str]:
    """Return what reads one of some words."""

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"{text!r} is none of {', '.join(values)}")
        return text

    return parse


def integer(text: str) -> int:
    """Read a whole number.

    Raises:
        ValueError: it is none.
    """
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None


def any_seconds(text: str) -> float:
    """Read a number of seconds.

    Raises:
        ValueError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number of seconds") from None


def num_bytes(text: str) -> int:
    """Read a Kubernetes quantity of at least one byte.

    Raises:
        ValueError: it is none.
    """
    value = quantity_bytes(text)
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def boolean(text: str) -> bool:
    """Read the value of a switch.

    Raises:
        ValueError: neither true nor false.
    """
    try:
        return {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def object_name(text: str) -> str:
    """Read the name of a Kubernetes object.

    Raises:
        ValueError: it is none.
    """
    if not _NAME.match(text):
        raise ValueError(f"{text!r} is no name of a Kubernetes object")
    return text


def object_names(text: str) -> tuple[str, ...]:
    """Read names of Kubernetes objects, separated by commas.

    Raises:
        ValueError: one of them is none.
    """
    return tuple(object_name(part.strip()) for part in text.split(",") if part.strip())


def _parse(option: Option, written: str, text: str | Sequence[str]) -> Any:
    try:
        return option.parse(text) if isinstance(text, str) else tuple(option.parse(item.strip()) for item in text)
    except ValueError as error:
        raise ConfigError(written, str(error)) from None


def _refuse_unknown(options: Sequence[Option], environment: Mapping[str, str]) -> None:
    known = {option.variable for option in options} | FOR_OTHERS
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name in known or name.startswith(f"{PREFIX}TEST_"):
            continue
        if not _SERVICE_LINK.search(name):
            raise ConfigError(name, "is no option of this program; see --help")


def _field_default(config: type[Any], name: str) -> Any:
    field = next(field for field in fields(config) if field.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _as_quantity(value: int) -> str:
    for unit, size in (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if value % size == 0:
            return f"{value // size}{unit}"
    return str(value)
