"""Results of steps on a GPU as tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

NUM_KERNELS = 8
"""That are shown."""
ALWAYS_SHOWN = ("record",)
"""However little they take."""


def gpu_tables(found: Mapping[str, Any]) -> str:
    """Return what was measured, in Markdown; of a part that failed or was left out, that."""
    rates = found["ceilings"]
    parts = [
        f"Measured ceilings: {rates['bytes_per_second'] / 1e12:.2f} TB/s of a copy, "
        f"{rates['flops_per_second'] / 1e12:.0f} TFLOP/s of a product; floors follow from them.\n"
    ]
    if rows := found.get("decode"):
        parts.append(_decode(rows))
    if rows := found.get("transformers"):
        words = ", ".join(f"{row['step_ms']:.2f} at batch {row['batch']}" for row in rows)
        parts.append(f"transformers' own decode step of the base, ms: {words}.\n")
    if rows := found.get("early"):
        parts.append(_early(rows))
    if rows := found.get("ranks"):
        parts.append(_ranks(rows))
    if rows := found.get("prefill"):
        parts.append(_prefill(rows))
    if cold := found.get("cold"):
        parts.append(_cold(cold))
    parts.extend(_kernels(part) for part in found.get("kernels", ()))
    for part, why in found.get("failed", {}).items():
        parts.append(f"Not measured: {part} ({why}).\n")
    if skipped := found.get("skipped"):
        parts.append(f"Not measured, out of time: {', '.join(skipped)}.\n")
    return "\n".join(parts)


def _decode(rows: Sequence[Mapping[str, Any]]) -> str:
    """Over base: against the step of the same batch without adapters. Where steps were submitted ahead, these are what is told."""
    took = {id(row): row.get("ahead_ms", row["step_ms"]) for row in rows}
    base = {row["batch"]: took[id(row)] for row in rows if not row["adapters"]}
    body = (
        "| batch | adapters | step ms, waited for | step ms | floor ms | of floor | over base | tokens/s |\n"
        "|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    for row in sorted(rows, key=lambda row: (row["batch"], row["adapters"])):
        ms = took[id(row)]
        over = f"{100 * (ms / base[row['batch']] - 1):.1f} %" if row["batch"] in base else ""
        body += (
            f"| {row['batch']} | {row['adapters']} | {row['step_ms']:.2f} | {ms:.2f} | {row['floor_ms']:.2f} "
            f"| {ms / row['floor_ms']:.2f} | {over} | {row['tokens_per_second']:,.0f} |\n"
        )
    return body


def _early(rows: Sequence[Mapping[str, Any]]) -> str:
    """The option's two sides, and pods for two ranks."""
    body = (
        "| batch | adapters | pod for rank | step ms, launches in turn | with --dependent-launch | change |\n"
        "|---:|---:|---:|---:|---:|---:|\n"
    )
    for row in rows:
        change = f"{100 * (row['early_ms'] / row['in_turn_ms'] - 1):+.1f} %" if row["is_captured"] else "not captured"
        body += (
            f"| {row['batch']} | {row['adapters']} | {row['rank_bound']} | {row['in_turn_ms']:.2f} | {row['early_ms']:.2f} "
            f"| {change} |\n"
        )
    return body


def _ranks(rows: Sequence[Mapping[str, Any]]) -> str:
    mixed, padded = rows
    took = [row.get("ahead_ms", row["step_ms"]) for row in rows]
    more = 100 * (took[1] / took[0] - 1)
    return (
        f"{mixed['adapters']} adapters of mixed ranks (sum {mixed['sum_of_ranks']}) at batch {mixed['batch']}: "
        f"{took[0]:.2f} ms, {mixed['tokens_per_second']:,.0f} tokens/s; the same number, each of the largest rank "
        f"(sum {padded['sum_of_ranks']}): {took[1]:.2f} ms. Mixed ranks give {more:.0f} % more tokens/s.\n"
    )


def _prefill(rows: Sequence[Mapping[str, Any]]) -> str:
    body = "| tokens of the prompt | adapters | step ms | floor ms | of floor |\n|---:|---:|---:|---:|---:|\n"
    for row in rows:
        body += f"| {row['tokens']} | {row['adapters']} | {row['step_ms']:.1f} | {row['floor_ms']:.1f} | {row['of_floor']:.2f} |\n"
    return body


def _kernels(part: Mapping[str, Any]) -> str:
    """What a decode step is made of, longest first."""
    total = sum(one["us"] for one in part["kernels"])
    body = f"Kernels of a decode step of batch {part['batch']} with {part['adapters']} adapters ({total / 1e3:.2f} ms together):\n\n"
    body += "| kernel | launches | ms together | us each |\n|---|---:|---:|---:|\n"
    ours = [one for one in part["kernels"][NUM_KERNELS:] if one["name"] in ALWAYS_SHOWN]
    for one in [*part["kernels"][:NUM_KERNELS], *ours]:
        name = one["name"].partition("<")[0].partition("(")[0]
        body += f"| `{name}` | {one['calls']:.0f} | {one['us'] / 1e3:.2f} | {one['us'] / one['calls']:.1f} |\n"
    return body


def _cold(cold: Mapping[str, Any]) -> str:
    return (
        f"A cold adapter: {cold['read_ms']:.0f} ms to read from files in the page cache, {cold['install_ms']:.1f} ms to install. "
        f"Steps of batch {cold['batch']}: median {cold['alone']['median_ms']:.2f} ms, longest {cold['alone']['worst_ms']:.2f} ms "
        f"alone; {cold['beside']['median_ms']:.2f} and {cold['beside']['worst_ms']:.2f} ms while {cold['num_loads']} adapters load.\n"
    )
