"""`kubectl lorafleet`: the command line. Exit status: 0 yes, 1 no, 2 used wrongly, 3 no answer."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from lorafleet_contract.base import Wire
from lorafleet_operator.kubectl.errors import PluginError
from lorafleet_operator.kubectl.paint import Painter, has_colour

READY: Final = 0
NOT_READY: Final = 1
USED_WRONGLY: Final = 2
NO_ANSWER: Final = 3
INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says."""

    command: str
    name: str | None
    namespace: str | None
    """None: that of the context."""
    is_everywhere: bool
    context: str | None
    kubeconfig: str | None
    output: str
    timeout_seconds: float | None
    """Of what waits; None: as long as it takes."""
    is_full: bool = False
    """Past all steps."""
    revision: str | None = None
    """To go back to; None: the one before."""


@dataclass(frozen=True, slots=True)
class Told:
    """An answer: as a document, as lines for people, and the exit status. Of several that of the last counts."""

    document: Wire
    lines: Callable[[Painter], Iterable[str]]
    status: int = READY


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        asked = parse(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as ended:  # argparse has said what is wrong, or helped
        return ended.code if isinstance(ended.code, int) else USED_WRONGLY
    from lorafleet_operator.kubectl.commands import COMMANDS  # noqa: PLC0415  --help and bad options answer at once

    try:
        return asyncio.run(_run(COMMANDS[asked.command](asked), asked.output))
    except PluginError as error:
        sys.stderr.write(f"error: {error}\n")
        return NO_ANSWER
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # who reads has seen enough, as with `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  or Python complains when it flushes at its end
        return READY


async def _run(answers: AsyncIterator[Told], output: str) -> int:
    """Print each answer as it comes; return the exit status of the last."""
    status = READY
    painter = Painter(is_coloured=has_colour(sys.stdout, os.environ))
    async for told in answers:
        if output == "json":
            document = told.document.model_dump(mode="json", by_alias=True)
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        else:
            sys.stdout.writelines(f"{line}\n" for line in told.lines(painter))
        sys.stdout.flush()
        status = told.status
    return status


def parse(arguments: Sequence[str]) -> Asked:
    """Read the command line.

    Raises:
        SystemExit: it is wrong, or asks for help; argparse has written what there is to say.
    """
    top = parser()
    parsed = top.parse_args(arguments)
    options = vars(parsed)
    command = " ".join(word for word in (parsed.command, options.get("subcommand")) if word)
    if parsed.command in ("why", "rollout") and options.get("all_namespaces"):
        top.error(f"argument -A/--all-namespaces: {command} asks about one adapter")
    return Asked(
        command=command,
        name=options.get("name"),
        namespace=options.get("namespace"),
        is_everywhere=options.get("all_namespaces", False),
        context=options.get("context"),
        kubeconfig=options.get("kubeconfig"),
        output=options.get("output", "text"),
        timeout_seconds=options.get("timeout"),
        is_full=options.get("full", False),
        revision=options.get("to_revision"),
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser; the options may stand before and after the command, as with kubectl."""
    top = argparse.ArgumentParser(
        prog="kubectl lorafleet",
        allow_abbrev=False,
        description="What a lorafleet serves, and why something is not served.",
        epilog="Exit status: 0 yes, 1 not Ready (why) or not done (rollout), 2 used wrongly, 3 no answer.",
    )
    _add_options(top, has_everywhere=True)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "bases and adapters at a glance"
    _add_options(commands.add_parser("status", help=about, description=about, allow_abbrev=False), has_everywhere=True)
    about = "each base, its pods and the adapters that they keep, with revision, tier and state"
    tree = commands.add_parser("tree", help=about, description=about, allow_abbrev=False)
    _add_options(tree, has_everywhere=True)
    tree.add_argument("name", metavar="BASE", nargs="?", help="one BaseModelDeployment [all]")
    about = "each check of acceptance and readiness of an adapter, with its answer"
    why = commands.add_parser("why", help=about, description=about, allow_abbrev=False)
    _add_options(why, has_everywhere=False)
    why.add_argument("name", metavar="ADAPTER", help="name of the LoraAdapter")
    about = "how an adapter comes from one revision to the next"
    rollout = commands.add_parser("rollout", help=about, description=about, allow_abbrev=False)
    _add_options(rollout, has_everywhere=False)
    subcommands = rollout.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    about = "how the rollout of what spec asks for stands"
    status = subcommands.add_parser("status", help=about, description=about, allow_abbrev=False)
    about = "a line for each change, until the rollout is done, given up or stalled"
    watch = subcommands.add_parser("watch", help=about, description=about, allow_abbrev=False)
    watch.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", default=None, help="wait so long at most [for ever]"
    )
    about = "go past the step that waits for a person: annotate lorafleet.io/promote"
    promote = subcommands.add_parser("promote", help=about, description=about, allow_abbrev=False)
    promote.add_argument("--full", action="store_true", help="past all steps, also of a revision that was rolled back")
    about = "give the rollout up and return to the stable revision: annotate lorafleet.io/abort"
    abort = subcommands.add_parser("abort", help=about, description=about, allow_abbrev=False)
    about = "ask for an earlier revision again: write its source into spec"
    undo = subcommands.add_parser("undo", help=about, description=about, allow_abbrev=False)
    undo.add_argument("--to-revision", metavar="REVISION", help="one of status.history [the one before]")
    for command in (status, watch, promote, abort, undo):
        _add_options(command, has_everywhere=False)
        command.add_argument("name", metavar="ADAPTER", help="name of the LoraAdapter")
    return top


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(text)
    return seconds


def _add_options(command: argparse.ArgumentParser, *, has_everywhere: bool) -> None:
    absent = argparse.SUPPRESS  # what stands before the command is not taken back by the default of that after it
    command.add_argument("-n", "--namespace", default=absent, help="namespace [that of the context]")
    if has_everywhere:
        command.add_argument("-A", "--all-namespaces", action="store_true", default=absent, help="all namespaces")
    command.add_argument("--context", default=absent, help="context of the kubeconfig [its current one]")
    command.add_argument("--kubeconfig", default=absent, metavar="FILE", help="[KUBECONFIG, else ~/.kube/config]")
    command.add_argument("-o", "--output", choices=["text", "json"], default=absent, help="[text]")
