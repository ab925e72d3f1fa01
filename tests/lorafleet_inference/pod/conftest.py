"""One served tiny Llama with two adapters for most tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from support.declared_pod import DeclaredPod, serve_declared
from support.pod import ServedPod, serve
from support.tiny_llama import make_adapter, make_base


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_base(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folders(base_folder: Path) -> dict[str, Path]:
    folders = {name: base_folder.parent / name for name in ("red", "blue")}
    make_adapter(base_folder, folders["red"], rank=4, seed=1)
    make_adapter(base_folder, folders["blue"], rank=8, seed=2)
    (folders["blue"] / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1]['content'] }}")
    return folders


@pytest.fixture(scope="session")
def pod(base_folder: Path, adapter_folders: dict[str, Path]) -> Iterator[ServedPod]:
    with serve(base_folder, "--served-name=tiny", "--pod-name=pod-1", adapters=adapter_folders) as served:
        yield served


@pytest.fixture(scope="session")
def declared(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeclaredPod]:
    """A pod with declared sources, few places for adapters and lenient rules for fields; each test uses names of its own."""
    root = tmp_path_factory.mktemp("declared")
    lenient = ("--unknown-fields=ignore", "--request-chat-templates", "--ad-hoc-adapters=sources")
    few = ("--max-resident-adapters=6", "--adapter-hold-seconds=120")
    drafting = "--speculative-tokens=4"
    with serve_declared(base_folder, root, *few, "--vllm-lora-routes", drafting, *lenient) as served:
        yield served


@pytest.fixture
def client(pod: ServedPod) -> Iterator[OpenAI]:
    with pod.openai() as made:
        yield made
