"""The digest can be computed by hand, and changes with what counts and nothing else."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from support.adapter_files import write_adapter

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.digest import digest_of
from lorafleet_inference.errors import AdapterError


def by_hand(folder: Path, names: list[str]) -> str:
    lines = []
    for name in names:
        data = (folder / name).read_bytes()
        lines.append(f"{hashlib.sha256(data).hexdigest()} {len(data)} {name}\n")
    return "sha256:" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def test_the_digest_is_what_the_documentation_says(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "one")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    names = ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
    assert digest_of(folder) == by_hand(folder, names)


def test_other_files_do_not_count(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "one")
    before = digest_of(folder)
    (folder / "README.md").write_text("hello")
    (folder / "optimizer.pt").write_bytes(b"x" * 1000)
    (folder / "checkpoint-10").mkdir()
    write_adapter(folder / "checkpoint-10", seed=3)
    assert digest_of(folder) == before


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"])
def test_every_file_that_counts_counts(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "one")
    before = digest_of(folder)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert digest_of(folder) != before


def test_links_are_followed(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "one")
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert digest_of(linked) == digest_of(folder)


def test_what_is_no_adapter_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pickled = write_adapter(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    for path, reason in (
        (tmp_path / "nowhere", Reason.ARTIFACT_NOT_FOUND),
        (tmp_path / "empty", Reason.ARTIFACT_NOT_FOUND),
        (pickled, Reason.UNSAFE_FORMAT),
    ):
        with pytest.raises(AdapterError) as caught:
            digest_of(path)
        assert caught.value.reason is reason


def test_the_shell_lines_of_the_documentation_print_the_digest(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "adapters.md").read_text()
    script = next(block.split("```")[0] for block in page.split("```sh\n")[1:] if "sha256sum" in block)
    folder = write_adapter(tmp_path / "one")
    done = subprocess.run(["bash", "-ec", script], cwd=folder, check=True, capture_output=True, text=True)
    assert f"sha256:{done.stdout.split()[0]}" == digest_of(folder)
