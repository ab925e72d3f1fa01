"""Draws runs as SVG: loads so far and imbalance of each minute, a row for each scenario."""

import itertools
import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 150, 60, 70, 55
COLOURS = ("#1f77b4", "#ff7f0e", "#d62728", "#9467bd", "#2ca02c")
Lines = Mapping[str, Sequence[float]]


def svg_of(minutes: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """Return the drawing: scenario -> policy -> loads and imbalance of each minute."""
    policies = list(next(iter(minutes.values())))
    height = TOP + len(minutes) * (HEIGHT + GAP)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (LEFT + WIDTH) + 20} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">Where adapters are kept: loads and imbalance, simulated</text>',
    ]
    for place, policy in enumerate(policies):
        x = LEFT + place * 170
        drawn.append(f'<line x1="{x}" x2="{x + 20}" y1="38" y2="38" stroke="{COLOURS[place]}" stroke-width="3"/>')
        drawn.append(f'<text x="{x + 26}" y="42">{escape(policy)}</text>')
    for row, (scenario, runs) in enumerate(minutes.items()):
        top = TOP + row * (HEIGHT + GAP)
        loads = {policy: list(itertools.accumulate(one["loads"] for one in run)) for policy, run in runs.items()}
        imbalance = {policy: [one["imbalance"] for one in run] for policy, run in runs.items()}
        drawn += _panel(f"{scenario}: adapters loaded so far", loads, LEFT, top, is_log=True)
        title = f"{scenario}: tokens of the busiest pod over the mean"
        drawn += _panel(title, imbalance, 2 * LEFT + WIDTH, top, is_log=False)
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _panel(title: str, lines: Lines, left: float, top: float, *, is_log: bool) -> list[str]:
    bottom = top + HEIGHT
    largest = max(value for line in lines.values() for value in line)
    low, high = (0.0, math.ceil(math.log10(max(10, largest)))) if is_log else (1.0, max(2.0, largest * 1.02))

    def y_of(value: float) -> float:
        seen = math.log10(max(1.0, value)) if is_log else value
        return bottom - (seen - low) / (high - low) * HEIGHT

    drawn = [
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{left}" y="{top - 6}">{escape(title)}</text>',
    ]
    marks = (
        [10.0**power for power in range(int(high) + 1)]
        if is_log
        else [low + part * (high - low) / 4 for part in range(5)]
    )
    for mark in marks:
        y = y_of(mark)
        drawn.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:.4g}</text>')
        drawn.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
    num_minutes = max(len(line) for line in lines.values())
    for part in range(5):
        x = left + part * WIDTH / 4
        minute = part * num_minutes / 4
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{minute:g} min</text>')
    for place, line in enumerate(lines.values()):
        step = WIDTH / max(1, len(line) - 1)
        path = " ".join(f"{left + at * step:.1f},{y_of(value):.1f}" for at, value in enumerate(line))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[place]}" stroke-width="1.4"/>')
    return drawn
