"""Draws a run as SVG: memory of the processes, waits of the tenant, lateness of /health, over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, GAP = 900, 190, 70, 40, 50
COLOURS = ("#1f77b4", "#d62728", "#2ca02c")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One diagram: what its axis says, and its lines by name."""

    title: str
    lines: Mapping[str, Points]


def svg_of(result: dict[str, Any]) -> str:
    """Return the drawing of a result file."""
    samples = result["samples"]
    memory = {
        f"{role} process": [(one["seconds"], one["memory_mib"][role]) for one in samples if role in one["memory_mib"]]
        for role in ("api", "engine")
    }
    files = {
        "open files (API process)": [(one["seconds"], one["files"]["api"]) for one in samples],
        "threads (API process)": [(one["seconds"], one["threads"]["api"]) for one in samples],
        "child processes": [(one["seconds"], one["num_children"]) for one in samples],
    }
    waits = {
        "tenant's pinned adapter, slowest answer of 10 s": _highest(
            [(at, whole) for at, _, whole, model in result["waits"] if model == "tenant"], 1.0
        ),
        "/health, slowest of 10 s": _highest([(at, late) for at, late in result["health"]], 1.0),
    }
    panels = [Panel("resident memory, MiB", memory), Panel("numbers", files), Panel("seconds", waits)]
    end = max(one["seconds"] for one in samples)
    height = TOP + len(panels) * (HEIGHT + GAP)
    title = (
        f"{result['num_answers']} answers in {result['settings']['seconds']:g} s of hostile traffic at three times the pod's rate; "
        f"the tenant's: {result['tenant']['right']} right"
    )
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        *(line for place, panel in enumerate(panels) for line in _panel(panel, TOP + place * (HEIGHT + GAP), end)),
        "</svg>",
    ]
    return "\n".join(drawn) + "\n"


def _panel(panel: Panel, top: float, end: float) -> list[str]:
    most = max((value for points in panel.lines.values() for _, value in points), default=1.0) * 1.05 or 1.0
    width, bottom = WIDTH - LEFT - 20, top + HEIGHT
    drawn = [f'<rect x="{LEFT}" y="{top}" width="{width}" height="{HEIGHT}" fill="none" stroke="#999"/>']
    for part in range(5):
        y = bottom - part * HEIGHT / 4
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{most * part / 4:.4g}</text>')
        drawn.append(f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        x = LEFT + part * width / 4
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{end * part / 4 / 60:.3g} min</text>')
    drawn.append(f'<text x="{LEFT}" y="{top - 6}">{escape(panel.title)}</text>')
    for place, (name, points) in enumerate(panel.lines.items()):
        path = " ".join(f"{LEFT + at / end * width:.1f},{bottom - value / most * HEIGHT:.1f}" for at, value in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[place]}" stroke-width="1.2"/>')
        label = f'fill="{COLOURS[place]}" text-anchor="end">{escape(name)}</text>'
        drawn.append(f'<text x="{LEFT + width - 6}" y="{top + 16 + 15 * place}" {label}')
    return drawn


def _highest(points: Points, share: float, *, seconds: float = 10.0) -> Points:
    """Return one point for each stretch of time, so that a long run stays small."""
    by_time: dict[int, list[float]] = {}
    for at, value in points:
        by_time.setdefault(int(at // seconds), []).append(value)
    return [
        (place * seconds, sorted(found)[min(len(found) - 1, int(share * len(found)))])
        for place, found in sorted(by_time.items())
    ]
