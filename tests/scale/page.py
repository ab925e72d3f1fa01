"""The table of docs/scale.md, made of a run: what was asked for, and what was measured."""

from typing import Any

Json = dict[str, Any]


def table_of(run: Json) -> str:
    """Return the table in Markdown."""
    single, churn, steady = run["single_changes"], run["churn"], run["steady"]
    lines = ["| | to be | is |", "|---|---|---|"]
    writes = steady["status_writes"] + steady["catalogue_writes"]
    lines += [
        f"| cold: the last adapter is Ready after the operator's start | < 30 s | {run['cold']['seconds']:.1f} s |",
        f"| a new revision at the pods that keep it, p99 (median) | < 1 s | {_seconds(single['at_its_pods_seconds'])} |",
        f"| the same while 5 changes a second come | < 1 s | {_seconds(churn['at_its_pods_seconds'])} |",
        f"| it answers the name | | {_seconds(single['switched_seconds'])} |",
        f"| it answers the name, while 5 changes a second come | | {_seconds(churn['switched_seconds'])} |",
        f"| gateway behind the API server, p99 (median) | < 2 s | {_seconds(single['gateway_behind_seconds'])} |",
        f"| a pass when nothing changes, mean | < 0.3 s | {_mean(steady)} |",
        f"| a pass while single changes come, with its writes, mean | | {_mean(single)} |",
        f"| statuses and catalogues written when nothing changes | 0 | {writes} |",
        f"| operator, processor when nothing changes | < 0.3 core | {steady['cpu_cores']['operator']:.3f} core |",
        f"| operator, memory | < 300 MB | {_megabytes(memory_of(run, 'operator'))} |",
        f"| gateway, memory | < 300 MB | {_megabytes(memory_of(run, 'gateway'))} |",
    ]
    if (rolling := run.get("rolling_update_in_mode_all")) is not None:
        lines.append(f"| statuses written in a rolling update in mode All | < 3,000 | {rolling['status_writes']:,} |")
    return "\n".join(lines) + "\n"


def memory_of(run: Json, program: str) -> float:
    """Return the most that a program was seen to have, in MiB."""
    seen = [float(phase[f"{program}_memory_mib"]) for phase in run.values() if f"{program}_memory_mib" in _keys(phase)]
    highest = [run["memory_mib"][program]["highest"]] if "memory_mib" in run else []
    return max([*seen, *highest])


def _keys(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _seconds(found: Json) -> str:
    return f"{found['p99']:.2f} s ({found['median']:.2f} s)"


def _mean(phase: Json) -> str:
    seconds = phase["passes"]["mean_seconds"]
    return f"{seconds:.2f} s" if seconds is not None else "none came"


def _megabytes(mebibytes: float) -> str:
    return f"{mebibytes * 1.048576:.0f} MB"
