"""The Dockerfiles, read as text: building them takes minutes and a builder, and is done by hand with `make images`."""

import fnmatch
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import images
import pytest

from lorafleet_contract.names import ADMIN_PORT, PUBLIC_PORT
from lorafleet_inference.kernels.triton.driver import FOLDER

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted({ROOT / name for name in images.FILES.values()})


@dataclass(slots=True)
class Stage:
    """A stage: what it begins from, and its instructions."""

    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """Arguments of every instruction of that name."""
        return [words for name, words in self.steps if name == instruction]


def stages(path: Path) -> dict[str, Stage]:
    """The stages by name."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in text.splitlines():
        instruction, _, words = line.partition(" ")
        if instruction == "FROM":
            parent, _, name = words.partition(" AS ")
            current = found[name] = Stage(parent)
        elif instruction and instruction != "#" and current is not None:
            current.steps.append((instruction, words))
    return found


def lineage(found: dict[str, Stage], name: str) -> list[str]:
    """A stage and those that it begins from."""
    names = [name]
    while found[names[-1]].parent in found:
        names.append(found[names[-1]].parent)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_header_names_the_stages(path: Path) -> None:
    header = path.read_text().partition("ARG ")[0]
    assert re.findall(r"^#   ([a-z-]+)  ", header, re.MULTILINE) == list(stages(path))


@pytest.mark.parametrize("target", images.FILES)
def test_target_runs_as_nobody_without_what_builds_it(target: str) -> None:
    found = stages(ROOT / images.FILES[target])
    assert lineage(found, target) == [target, "base"]
    assert found["base"].parent == "${PYTHON_IMAGE}"
    stage = found[target]
    assert stage.all("USER") == ["65532:65532"]
    assert not stage.all("RUN")
    assert stage.steps[-1][0] == "CMD"
    assert not [
        word
        for name in ("base", target)
        for words in found[name].all("RUN")
        for word in ("apt-get", "gcc", "pip")
        if word in words
    ]


def test_programs_are_the_entry_points_of_their_images() -> None:
    for target, package in (
        ("operator", "lorafleet_operator"),
        ("gateway", "lorafleet_gateway"),
        ("inference", "lorafleet_inference"),
    ):
        stage = stages(ROOT / images.FILES[target])[target]
        assert stage.all("ENTRYPOINT") == [f'["python3", "-m", "{package}"]']
    inference = stages(ROOT / "Dockerfile.inference")["inference"]
    assert inference.all("EXPOSE") == [f"{PUBLIC_PORT} {ADMIN_PORT}"]


def test_module_for_the_gpu_driver_is_where_the_engine_looks_for_it() -> None:
    found = stages(ROOT / "Dockerfile.inference")
    assert f"--from=driver {FOLDER} {FOLDER}" in found["inference"].all("COPY")
    (command,) = found["driver"].all("RUN")
    assert f"/opt/lorafleet/venv/bin/python /build/triton_driver.py {FOLDER};" in command
    names = {name.partition("=")[0] for name in found["driver"].all("ARG")}
    assert names == {value.partition("=")[0] for value in images.LOCAL_ARGUMENTS["inference"]}


@pytest.mark.parametrize(
    ("program", "policy", "status", "made"),
    [
        ("true", "required", 0, True),
        ("false", "required", 1, False),
        ("false", "optional", 0, False),
    ],
)
def test_only_a_local_base_does_without_that_module(
    program: str, policy: str, status: int, made: bool, tmp_path: Path
) -> None:
    (command,) = stages(ROOT / "Dockerfile.inference")["driver"].all("RUN")
    (tmp_path / "apt-get").symlink_to(f"/bin/{program}")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n: > "$2/built"\n')
    python.chmod(0o755)
    command = command.replace("/opt/lorafleet/venv/bin/python", str(python)).replace(str(FOLDER), str(tmp_path / "to"))
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TRITON_DRIVER": policy, "DRIVER_PACKAGES": "gcc"}
    assert subprocess.run(["/bin/sh", "-c", command], env=env, check=False).returncode == status
    assert (tmp_path / "to" / "built").exists() == made


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_packages_come_from_locks_with_hashes(path: Path) -> None:
    installs = [words for stage in stages(path).values() for words in stage.all("RUN") if "pip install" in words]
    assert installs
    assert all("--require-hashes" in words for words in installs)


def test_context_has_what_is_copied_and_little_else() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    copied = {
        source
        for path in FILES
        for stage in stages(path).values()
        for words in stage.all("COPY")
        if not words.startswith("--from")
        for source in words.split()[:-1]
    }
    for source in copied:
        assert any(fnmatch.fnmatch(source, rule) or rule.startswith(f"{source}/") for rule in let_in), (
            f"{source} is not let in"
        )
    for rule in let_in:
        assert any(fnmatch.fnmatch(source, rule) or rule.startswith(f"{source}/") for source in copied), (
            f"{rule} is copied by nobody"
        )


def test_every_target_of_the_files_is_built() -> None:
    for path in FILES:
        finals = {name for name, stage in stages(path).items() if stage.all("CMD")}
        assert finals == {target for target, file in images.FILES.items() if ROOT / file == path}


def test_without_a_builder_one_sentence_says_what_to_do() -> None:
    command = [sys.executable, "tools/images.py", "operator"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": "/nonexistent"}, check=False, text=True, capture_output=True)
    assert done.returncode == 1
    assert done.stderr == "Neither docker nor podman nor buildah works here. On Debian: apt-get install buildah\n"
