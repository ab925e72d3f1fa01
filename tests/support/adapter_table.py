"""Writes docs/reference/adapter-support.md from what the exactness suite runs: `PYTHONPATH=tests python -m support.adapter_table`."""

from pathlib import Path

from support.families import FAMILIES, KINDS, OWN, adapter_specs

from lorafleet_inference.adapters.peft_config import REFUSED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "adapter-support.md"
BEGIN, END = "<!-- generated: {} -->\n", "<!-- end -->"


def support_table() -> str:
    """A row for each family, a column for each kind of adapter."""
    families = {name: adapter_specs(family) for name, family in FAMILIES.items()}
    kinds = list(dict.fromkeys(kind for specs in families.values() for kind in specs))
    assert set(kinds) == set(KINDS), "every kind has its line"
    lines = ["| family | layers | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    for name, specs in families.items():
        whose = "own" if name in OWN else "transformers"
        lines.append(f"| {name} | {whose} | " + " | ".join("exact" if kind in specs else "–" for kind in kinds) + " |")
    return "\n".join(lines) + "\n"


def kinds_table() -> str:
    """What each kind is."""
    lines = ["| kind | what it is |", "|---|---|"]
    return "\n".join([*lines, *(f"| {kind} | {meaning} |" for kind, meaning in KINDS.items())]) + "\n"


def refused_table() -> str:
    """Fields of adapter_config.json that are refused unless they change nothing."""
    lines = ["| field of adapter_config.json | why |", "|---|---|"]
    lines += [f"| `{name}` | it {rule.meaning} |" for name, rule in sorted(REFUSED.items()) if rule.meaning]
    return "\n".join(lines) + "\n"


def rendered() -> str:
    """Return the page with its tables as they should be."""
    text = PAGE.read_text()
    for name, table in (("support", support_table()), ("kinds", kinds_table()), ("refused", refused_table())):
        head, rest = text.split(BEGIN.format(name), 1)
        _, tail = rest.split(END, 1)
        text = f"{head}{BEGIN.format(name)}\n{table}\n{END}{tail}"
    return text


if __name__ == "__main__":
    PAGE.write_text(rendered())
