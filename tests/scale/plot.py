"""Draws what operator and gateway cost against the size of the fleet, as SVG."""

from collections.abc import Callable, Sequence
from typing import Any
from xml.sax.saxutils import escape

from scale.page import memory_of

WIDTH, HEIGHT, LEFT, TOP, GAP = 380, 170, 60, 60, 60
COLOURS = ("#1f77b4", "#d62728", "#2ca02c")
Json = dict[str, Any]
Line = tuple[str, Callable[[Json], float]]
PANELS: tuple[tuple[str, tuple[Line, ...]], ...] = (
    ("cold convergence, s", (("all adapters Ready", lambda run: run["cold"]["seconds"]),)),
    (
        "a new revision, median s after its write",
        (
            ("at the pods that keep it", lambda run: run["single_changes"]["at_its_pods_seconds"]["median"]),
            ("at them, during churn", lambda run: run["churn"]["at_its_pods_seconds"]["median"]),
            ("switched to", lambda run: run["single_changes"]["switched_seconds"]["median"]),
        ),
    ),
    (
        "mean length of a pass, s",
        (
            ("single changes", lambda run: run["single_changes"]["passes"]["mean_seconds"]),
            ("nothing changes", lambda run: run["steady"]["passes"]["mean_seconds"] or 0.0),
        ),
    ),
    (
        "highest resident memory, MiB",
        (
            ("operator", lambda run: memory_of(run, "operator")),
            ("gateway", lambda run: memory_of(run, "gateway")),
        ),
    ),
)


def svg_of(runs: Sequence[Json]) -> str:
    """Return the drawing of runs, by size."""
    ordered = sorted(runs, key=_entries)
    height = TOP + 2 * (HEIGHT + GAP)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (LEFT + WIDTH) + 20} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">Cost of the control plane against adapters x pods</text>',
    ]
    for place, (title, lines) in enumerate(PANELS):
        left, top = LEFT + place % 2 * (WIDTH + LEFT), TOP + place // 2 * (HEIGHT + GAP)
        drawn += _panel(title, lines, ordered, left, top)
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _entries(run: Json) -> int:
    return int(run["sizes"]["num_pods"]) * int(run["sizes"]["num_adapters"])


def _panel(title: str, lines: Sequence[Line], runs: Sequence[Json], left: float, top: float) -> list[str]:
    bottom, most_entries = top + HEIGHT, _entries(runs[-1])
    most = max((value(run) for _, value in lines for run in runs), default=1.0) * 1.05 or 1.0
    drawn = [
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{left}" y="{top - 6}">{escape(title)}</text>',
    ]
    for part in range(5):
        y = bottom - part * HEIGHT / 4
        drawn.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{most * part / 4:.3g}</text>')
    for run in runs:
        x = left + _entries(run) / most_entries * WIDTH
        size = f"{run['sizes']['num_adapters']}x{run['sizes']['num_pods']}"
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" font-size="10">{size}</text>')
    for place, (name, value) in enumerate(lines):
        points = [(left + _entries(run) / most_entries * WIDTH, bottom - value(run) / most * HEIGHT) for run in runs]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[place]}" stroke-width="1.4"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{COLOURS[place]}"/>' for x, y in points]
        label = f'fill="{COLOURS[place]}">{escape(name)}</text>'
        drawn.append(f'<text x="{left + 8}" y="{top + 16 + 15 * place}" {label}')
    return drawn
