"""The cache is filled once, and heals."""

import shutil
import threading

import pytest
from localcluster.artifacts import STAMP, Artifact, content_key
from localcluster.paths import cache_root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_root().mkdir(parents=True)


@pytest.fixture
def builds():
    return []


@pytest.fixture
def artifact(builds):
    def build(folder):
        builds.append(folder)
        (folder / "sub").mkdir()
        (folder / "sub" / "program").write_text("all of it")

    return Artifact("thing", "0123", build)


def test_it_is_made_once(artifact, builds):
    assert not artifact.complete()
    folder = artifact.prepare()
    assert (folder / "sub" / "program").read_text() == "all of it"
    assert artifact.prepare() == folder
    assert len(builds) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "sub" / "program").unlink(),
        lambda folder: (folder / "sub" / "program").write_text("half"),
        lambda folder: (folder / STAMP).unlink(),
        lambda folder: (folder / STAMP).write_text("{"),
        shutil.rmtree,
    ],
)
def test_a_damaged_one_is_made_again(artifact, builds, damage):
    folder = artifact.prepare()
    damage(folder)
    assert not artifact.complete()
    assert (artifact.prepare() / "sub" / "program").read_text() == "all of it"
    assert len(builds) == 2


def test_byte_code_that_comes_later_is_no_damage(artifact):
    folder = artifact.prepare()
    (folder / "sub" / "__pycache__").mkdir()
    (folder / "sub" / "__pycache__" / "x.pyc").write_text("x")
    assert artifact.complete()


def test_a_failed_build_leaves_nothing_and_an_interrupted_one_is_swept(artifact):
    def fail(folder):
        (folder / "half").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Artifact("thing", "0123", fail).prepare()
    assert not list(cache_root().glob("thing-*"))
    (cache_root() / "thing-0123.abc.part").mkdir()  # what a killed process leaves
    artifact.prepare()
    assert [path.name for path in cache_root().glob("thing-*")] == ["thing-0123"]


def test_two_at_a_time_build_once(artifact, builds):
    threads = [threading.Thread(target=artifact.prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_the_key_changes_with_content_names_and_borders(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = content_key(folder)
    (folder / "a").write_text("2")
    second = content_key(folder)
    (folder / "a").rename(folder / "b")
    third = content_key(folder)
    assert len({first, second, third}) == 3
    assert content_key("ab", "c") != content_key("a", "bc")
    assert content_key(folder) == third
