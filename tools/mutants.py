"""Puts small faults into the pure cores, one at a time, and lists those that no test notices: `make mutants`.

mutmut knows one source folder of one project; ours are five. For each module of tests/mutants/mutmut.toml they are staged
side by side below .local/mutants. A fault that no test notices has to be explained in tests/mutants/survivors.md, and at
least 95 % of those that are not equivalent have to be noticed.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import bootstrap

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / ".local" / "mutants"
SITE = ROOT / ".local" / "mutmut"
SETTINGS = ROOT / "tests" / "mutants" / "mutmut.toml"
PAGE = ROOT / "tests" / "mutants" / "survivors.md"
MUTMUT = "mutmut==3.8.1"
MIN_SHARE_NOTICED = 0.95
UNNOTICED = (0, 33)
"""mutmut's exit statuses of mutants that survive, or that no test calls."""
NOTICED = (3, 36)
"""Those of tests/mutants/stage_conftest.py: a test failed, or did not end. Any other says nothing of the mutant."""
WORDS = re.compile(r'"[^"]* [^"]*"')
"""A string that is for people: what it says may change."""
EQUIVALENT = "Equivalent"
"""How the reason of a mutant begins that no input tells from the original."""

Fault = tuple[str, str]
"""Function of a module, and what becomes of what in it."""


@dataclass(frozen=True)
class Judged:
    """One module after its run."""

    module: str
    num_mutants: int
    num_words: int
    """Those that change the words of a message and nothing else; they are not among the others."""
    unnoticed: list[Fault]
    explained: dict[Fault, str]

    @property
    def equivalent(self) -> list[Fault]:
        return [fault for fault in self.unnoticed if self.explained.get(fault, "").startswith(EQUIVALENT)]

    @property
    def left(self) -> list[Fault]:
        return [fault for fault in self.unnoticed if fault in self.explained and fault not in self.equivalent]

    @property
    def unexplained(self) -> list[Fault]:
        return [fault for fault in self.unnoticed if fault not in self.explained]

    @property
    def stale(self) -> list[Fault]:
        return [fault for fault in self.explained if fault not in self.unnoticed]


def stage(module: str, tests: list[str]) -> Path:
    """Lay the packages and the tests out as one project; what mutmut has found out before stays."""
    place = STAGE / module
    place.mkdir(parents=True, exist_ok=True)
    for folder in ("src", "tests", "tools"):
        shutil.rmtree(place / folder, ignore_errors=True)
    for package in bootstrap.PACKAGES:
        skipped = shutil.ignore_patterns("*.egg-info", "__pycache__")
        shutil.copytree(ROOT / package / "src", place / "src", dirs_exist_ok=True, ignore=skipped)
    for folder in ("tests", "tools"):
        skipped = shutil.ignore_patterns("cluster", "soak", "mutants", "__pycache__")
        shutil.copytree(ROOT / folder, place / folder, ignore=skipped)
    shutil.copy(ROOT / "tests" / "mutants" / "stage_conftest.py", place / "conftest.py")
    selected = [f"tests/{test}" for test in tests if (ROOT / "tests" / test).exists()]
    more = {"only_mutate": [f"src/{module.replace('.', '/')}.py"], "pytest_add_cli_args_test_selection": selected}
    lines = [f"{key} = {json.dumps(value)}" for key, value in more.items()]
    (place / "pyproject.toml").write_text(SETTINGS.read_text() + "\n".join(lines) + "\n")
    return place


def install() -> None:
    if not (SITE / "mutmut").is_dir():
        command = [bootstrap.find_uv(), "pip", "install", "--quiet", "--python", sys.executable]
        subprocess.run([*command, "--target", str(SITE), MUTMUT], check=True)
    sys.path.append(str(SITE))


def meta_of(place: Path) -> Path:
    (only,) = (place / "mutants").rglob("*.meta")
    return only


def try_again(place: Path) -> None:
    """Forget the verdicts of mutants that nothing noticed, and which tests call what."""
    (place / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    path = meta_of(place)
    meta = json.loads(path.read_text())
    verdicts = meta["exit_code_by_key"]
    noticed = {name: code if code in NOTICED else None for name, code in verdicts.items()}
    path.write_text(json.dumps({**meta, "exit_code_by_key": noticed}))


def run(place: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SITE)}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", os.environ.get("MUTANTS_AT_ONCE", "1")]
    log = place / "mutmut.log"
    with log.open("w") as output:
        done = subprocess.run(command, cwd=place, env=environment, check=False, stdout=output, stderr=output)
    if done.returncode:
        sys.exit(f"{log.read_text()[-3000:]}\nmutmut ended with {done.returncode}; its log is {log}")


def fault_of(mutant: str, path: Path) -> Fault:
    from mutmut.mutation.diff_apply import get_diff_for_mutant  # noqa: PLC0415  it has been installed just now

    sides: dict[str, list[str]] = {"-": [], "+": []}
    for line in get_diff_for_mutant(mutant, path=path).splitlines():
        if line[:1] in sides and line[:3] not in ("---", "+++"):
            sides[line[0]].append(line[1:].strip())
    before, after = (" ".join(" ".join(sides[side]).split()) for side in "-+")
    name = re.search(r"\.x(ǁ(\w+)ǁ|_)(\w+)__mutmut_\d+$", mutant)
    assert name is not None, mutant
    return ".".join(part for part in (name[2], name[3]) if part), f"`{before}` → `{after}`"


def is_of_words(fault: Fault) -> bool:
    before, after = (WORDS.sub('""', side) for side in fault[1].split("` → `"))
    return before.lstrip("`") == after.rstrip("`")


def explained(module: str) -> dict[Fault, str]:
    """What survivors.md says of a module's faults."""
    found: dict[Fault, str] = {}
    here = False
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            here = f"`{module}`" in line
        elif here and line.startswith("| `"):
            function, fault, reason = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:4])
            found[function.strip("`"), fault.replace(r"\|", "|")] = reason
    return found


def judge(module: str, tests: list[str], *, again: bool) -> Judged:
    if not again:
        shutil.rmtree(STAGE / module, ignore_errors=True)
    place = stage(module, tests)
    if again and (place / "mutants").exists():
        try_again(place)
    run(place)
    verdicts = json.loads(meta_of(place).read_text())["exit_code_by_key"]
    unknown = {name: code for name, code in verdicts.items() if code not in (*NOTICED, *UNNOTICED)}
    if unknown:
        sys.exit(f"{module}: {len(unknown)} mutants could not be judged, e.g. {next(iter(unknown.items()))}")
    with contextlib.chdir(place):
        path = Path("src", *module.split(".")).with_suffix(".py")
        faults = {name: fault_of(name, path) for name in verdicts}
    counted = [name for name, fault in faults.items() if not is_of_words(fault)]
    unnoticed = [faults[name] for name in counted if verdicts[name] in UNNOTICED]
    return Judged(module, len(counted), len(faults) - len(counted), unnoticed, explained(module))


def report(judged: Judged) -> None:
    equivalent, left = len(judged.equivalent), len(judged.left)
    noticed = judged.num_mutants - len(judged.unnoticed)
    print(
        f"{judged.module}: {judged.num_mutants} mutants, {noticed} noticed, {equivalent} equivalent, {left} left, "
        f"{len(judged.unexplained)} not explained; {judged.num_words} that change words only are not counted",
        flush=True,
    )
    for function, fault in judged.unexplained:
        print(f"| `{function}` | {fault.replace('|', chr(92) + '|')} |  |")
    for function, fault in judged.stale:
        print(f"  explained, but noticed or gone: {function}: {fault}")


def main() -> None:
    known = tomllib.loads(SETTINGS.read_text())["modules"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="only these modules, by their last name, e.g. place")
    parser.add_argument("--again", action="store_true", help="try only mutants that the last run did not notice")
    arguments = parser.parse_args()
    chosen = [name for name in known if not arguments.modules or name.rpartition(".")[2] in arguments.modules]
    if not chosen:
        parser.error(f"there are {', '.join(name.rpartition('.')[2] for name in known)}")
    install()
    all_judged = []
    for module in chosen:
        all_judged.append(judge(module, known[module], again=arguments.again))
        report(all_judged[-1])
    counted = sum(judged.num_mutants - len(judged.equivalent) for judged in all_judged)
    missed = sum(len(judged.left) + len(judged.unexplained) for judged in all_judged)
    share = 1 - missed / counted
    print(f"{share:.1%} of the {counted} mutants that are not equivalent are noticed")
    unjudged = [judged.module for judged in all_judged if judged.unexplained or judged.stale]
    if unjudged:
        sys.exit(f"{PAGE.relative_to(ROOT)} does not say what is so of {', '.join(unjudged)}")
    if share < MIN_SHARE_NOTICED:
        sys.exit(f"fewer than {MIN_SHARE_NOTICED:.0%} are noticed")


if __name__ == "__main__":
    main()
