"""Puts small faults into the pure cores, one at a time, and lists those that no test notices: `make mutants`.

mutmut knows one source folder of one project; ours are five. They are staged side by side below .local/mutants, where it
runs with the settings of tests/mutants/mutmut.toml. What it lists and tests/mutants/survivors.md does not explain fails.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import bootstrap

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / ".local" / "mutants"
SITE = ROOT / ".local" / "mutmut"
MUTMUT = "mutmut==3.8.1"
MIN_SHARE_NOTICED = 0.95


def stage() -> None:
    """Lay the packages and the tests out as one project; what mutmut has found out about unchanged files stays."""
    STAGE.mkdir(parents=True, exist_ok=True)
    for folder in ("src", "tests", "tools"):
        shutil.rmtree(STAGE / folder, ignore_errors=True)
    for package in bootstrap.PACKAGES:
        shutil.copytree(
            ROOT / package / "src", STAGE / "src", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.egg-info")
        )
    for folder in ("tests", "tools"):
        shutil.copytree(ROOT / folder, STAGE / folder, ignore=shutil.ignore_patterns("cluster", "soak", "__pycache__"))
    shutil.copy(ROOT / "tests" / "mutants" / "mutmut.toml", STAGE / "pyproject.toml")


def mutmut(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SITE)}
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=STAGE, env=environment, check=False, text=True, **options)  # type: ignore[call-overload, no-any-return]


def install() -> None:
    if not (SITE / "mutmut").is_dir():
        command = [
            bootstrap.find_uv(),
            "pip",
            "install",
            "--quiet",
            "--python",
            sys.executable,
            "--target",
            str(SITE),
            MUTMUT,
        ]
        subprocess.run(command, check=True)


def results() -> dict[str, str]:
    """Mutant -> killed, survived, timeout, no tests…"""
    listed = mutmut("results", "--all", "true", stdout=subprocess.PIPE).stdout
    pairs = (line.strip().rsplit(": ", 1) for line in listed.splitlines() if ": " in line)
    return {pair[0]: pair[1] for pair in pairs}


def explained() -> set[str]:
    """Mutants that survivors.md calls equivalent or explains."""
    page = (ROOT / "tests" / "mutants" / "survivors.md").read_text()
    return {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these mutants, e.g. 'lorafleet_operator.decide.place*'")
    arguments = parser.parse_args()
    install()
    stage()
    mutmut("run", "--max-children", "1", *arguments.names)
    found = {name: how for name, how in results().items() if how != "not checked"}
    unnoticed = sorted(name for name, how in found.items() if how in ("survived", "no tests"))
    missing = [name for name in unnoticed if name not in explained()]
    counted = len(found) - len(unnoticed) + len(missing)
    share = 1 - len(missing) / counted if counted else 1.0
    print(
        f"{len(found)} mutants; {len(unnoticed)} unnoticed, {len(unnoticed) - len(missing)} of them explained; {share:.1%} noticed"
    )
    for name in missing:
        print(f"  {name}")
    if share < MIN_SHARE_NOTICED:
        sys.exit(f"fewer than {MIN_SHARE_NOTICED:.0%} are noticed; `tools/mutants.py` stages them below {STAGE}")


if __name__ == "__main__":
    main()
