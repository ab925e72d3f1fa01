"""The answers of the commands as text for people."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

from lorafleet_contract.admin import AdapterState
from lorafleet_operator.kubectl.explain import Explanation
from lorafleet_operator.kubectl.paint import MAX_CELL, Colour, Painter, plain
from lorafleet_operator.kubectl.views import (
    AdapterLine,
    BaseNode,
    FleetStatus,
    FleetTree,
    HeldAdapter,
    Standing,
    is_well,
)
from lorafleet_operator.kubectl.why import Answer, Outcome

MARKS: Final = {
    Outcome.OK: ("ok", Colour.GOOD),
    Outcome.FAILED: ("no", Colour.BAD),
    Outcome.UNKNOWN: ("?", Colour.WAITING),
    Outcome.SKIPPED: ("-", Colour.FAINT),
}
_READY: Final = {"True": Colour.GOOD, "False": Colour.BAD, "Unknown": Colour.WAITING}
_NONE: Final = "-"


def status_lines(status: FleetStatus, painter: Painter) -> Iterator[str]:
    """Yield bases and adapters as two tables."""
    if not status.bases and not status.adapters:
        yield "There is no BaseModelDeployment and no LoraAdapter here."
    if status.bases:
        columns = ["NAMESPACE", "BASE", "READY", "PODS", "ADAPTERS", "SLOTS", "REASON", "MESSAGE"]
        yield from painter.table(
            columns,
            [
                [
                    line.namespace,
                    line.name,
                    _ready(line.standing),
                    f"{line.ready_pods}/{line.pods}",
                    f"{line.ready_adapters}/{line.adapters}",
                    f"{line.assigned_slots}/{line.slots}",
                    *_why(line.standing),
                ]
                for line in status.bases
            ],
        )
    if status.adapters:
        if status.bases:
            yield ""
        columns = ["NAMESPACE", "ADAPTER", "BASE", "READY", "REVISION", "RESIDENT", "LAST USED", "REASON", "MESSAGE"]
        yield from painter.table(
            columns,
            [
                [
                    line.namespace,
                    line.name,
                    _base(line),
                    _ready(line.standing),
                    _revision(line),
                    _resident(line),
                    _hour(line.last_used),
                    *_why(line.standing),
                ]
                for line in status.adapters
            ],
        )
    yield from _noted(status.notes, painter)


def tree_lines(tree: FleetTree, painter: Painter) -> Iterator[str]:
    """Yield bases with their pods and adapters."""
    if not tree.bases and not tree.orphans:
        yield "There is no BaseModelDeployment and no LoraAdapter here."
    for node in tree.bases:
        yield from _base_lines(node, painter)
    for line in tree.orphans:
        text, colour = _ready(line.standing)
        title = painter.paint(f"LoraAdapter {line.namespace}/{line.name}", Colour.STRONG)
        yield f"{title} of {_base(line)}, which is not shown here: {painter.paint(text, colour)} {_said(line.standing)}"
    yield from _noted(tree.notes, painter)


def _base_lines(node: BaseNode, painter: Painter) -> Iterator[str]:
    base = node.base
    title = painter.paint(f"BaseModelDeployment {base.namespace}/{base.name}", Colour.STRONG)
    counts = f"{base.ready_pods}/{base.pods} pods, {base.ready_adapters}/{base.adapters} adapters ready"
    yield f"{title}  {painter.paint(*_standing(base.standing))}  {counts}"
    branches: list[tuple[str, list[str]]] = []
    for pod in node.pods:
        word, colour = {True: ("Ready", Colour.GOOD), False: ("NotReady", Colour.BAD), None: ("", None)}[pod.is_ready]
        words = f": {plain(pod.words, MAX_CELL)}" if pod.words else ""
        head = f"Pod {pod.name}  {painter.paint(word, colour)}{words}".rstrip()
        branches.append((head, list(_held_lines(pod.adapters, painter))))
    if node.elsewhere:
        lines = [
            f"{line.name}  {_revision(line)}  {painter.paint(*_standing(line.standing))}  {line.mode}"
            for line in node.elsewhere
        ]
        branches.append(("kept by no pod: loaded on demand, or not at all", lines))
    if node.num_unlisted:
        branches.append((f"and {node.num_unlisted} placements that statuses do not list", []))
    for number, (head, leaves) in enumerate(branches, start=1):
        is_last = number == len(branches)
        yield f"{'└──' if is_last else '├──'} {head}"
        for place, leaf in enumerate(leaves, start=1):
            yield f"{'   ' if is_last else '│  '} {'└──' if place == len(leaves) else '├──'} {leaf}"


def _held_lines(held: Iterable[HeldAdapter], painter: Painter) -> Iterator[str]:
    entries = list(held)
    width = max([len(entry.name) for entry in entries], default=0)
    for entry in entries:
        colour = (
            Colour.GOOD if is_well(entry) else (Colour.BAD if entry.state == AdapterState.FAILED else Colour.WAITING)
        )
        role = "" if entry.is_stable else "  not the stable revision"
        message = f"  {entry.reason}: {plain(entry.message or '', MAX_CELL)}" if entry.reason else ""
        state = painter.paint(entry.state, colour)
        yield f"{entry.name.ljust(width)}  {entry.revision}  {(entry.tier or _NONE).ljust(6)}  {state}{role}{message}"


def why_lines(found: Explanation, painter: Painter) -> Iterator[str]:
    """Yield each check with its answer, and what else is known."""
    verdict, line = found.verdict, found.adapter
    title = painter.paint(f"LoraAdapter {line.namespace}/{line.name}", Colour.STRONG)
    text, colour = ("is Ready", Colour.GOOD) if verdict.is_ready else ("is not Ready", Colour.BAD)
    yield f"{title} {painter.paint(text, colour)}: {line.standing.reason}: {plain(line.standing.message)}"
    yield ""
    yield painter.paint("Is it accepted?", Colour.STRONG)
    yield from _answer_lines(verdict.acceptance, painter)
    yield ""
    yield painter.paint("Is it ready?", Colour.STRONG)
    yield from _answer_lines(verdict.readiness, painter)
    yield ""
    yield painter.paint("What is known", Colour.STRONG)
    yield from (f"  {plain(fact)}" for fact in found.facts)
    if found.placements:
        yield ""
        rows = [
            [entry.pod, entry.revision, entry.tier or _NONE, entry.state, _words_of(entry.reason, entry.message)]
            for entry in found.placements
        ]
        yield from (f"  {row}" for row in painter.table(["POD", "REVISION", "TIER", "STATE", "WHY"], rows))
    if found.events:
        yield ""
        rows = [
            [_minute(event.time), event.type, event.reason, plain(event.message, MAX_CELL)] for event in found.events
        ]
        yield from (f"  {row}" for row in painter.table(["EVENT", "TYPE", "REASON", "MESSAGE"], rows))
    yield from _noted(found.notes, painter)


def _answer_lines(answers: Iterable[Answer], painter: Painter) -> Iterator[str]:
    for answer in answers:
        mark, colour = MARKS[answer.outcome]
        yield f"  {painter.paint(mark, colour)}{' ' * (4 - len(mark))}{answer.expects}"
        if answer.reason:
            yield f"      {painter.paint(answer.reason, Colour.BAD)}: {plain(answer.message or '')}"
        if answer.hint:
            yield f"      → {answer.hint}"


def _noted(notes: Iterable[str], painter: Painter) -> Iterator[str]:
    lines = [painter.paint(f"note: {plain(note)}", Colour.FAINT) for note in notes]
    yield from ["", *lines] if lines else []


def _ready(standing: Standing) -> tuple[str, Colour | None]:
    return standing.ready, _READY.get(standing.ready)


def _standing(standing: Standing) -> tuple[str, Colour | None]:
    return ("Ready" if standing.ready == "True" else standing.reason), _READY.get(standing.ready)


def _why(standing: Standing) -> tuple[str, str]:
    return standing.reason, "" if standing.ready == "True" else plain(standing.message, MAX_CELL)


def _said(standing: Standing) -> str:
    return f"{standing.reason}: {plain(standing.message, MAX_CELL)}"


def _words_of(reason: str | None, message: str | None) -> str:
    return ": ".join(part for part in (reason, plain(message or "", MAX_CELL)) if part)


def _base(line: AdapterLine) -> str:
    return line.base if line.base_namespace == line.namespace else f"{line.base_namespace}/{line.base}"


def _revision(line: AdapterLine) -> str:
    stable, desired = line.stable_revision, line.desired_revision
    if desired is None or desired == stable:
        return stable or _NONE
    return f"{stable or _NONE} → {desired}"


def _resident(line: AdapterLine) -> str:
    return line.mode if line.mode == "OnDemand" else f"{line.resident}/{line.desired}"


def _hour(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %Hh") if moment is not None else _NONE


def _minute(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S") if moment is not None else _NONE
