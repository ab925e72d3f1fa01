"""Base models in a bucket, brought into the cache of models from a real S3 server."""

import gc
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cache_filler import PATIENCE
from support.servers import ACCESS_KEY, SECRET_KEY, ServedS3, serve_s3

from lorafleet_common.errors import ConfigError
from lorafleet_inference.fetch import find_model, model_folder
from lorafleet_inference.model_bucket import BucketModel
from lorafleet_inference.model_cache import ModelCache

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": b"1" * 9_000_000,
    "model-00002-of-00002.safetensors": b"2" * 500_000,
    "model.safetensors.index.json": b"{}",
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    "pytorch_model.bin": b"pickle",
    "original/consolidated.safetensors": b"a second copy",
    "README.md": b"hello",
}
WANTED = {name for name in FILES if name not in ("pytorch_model.bin", "original/consolidated.safetensors", "README.md")}
URL = "s3://models/bases/llama"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedS3]:
    with serve_s3(tmp_path_factory.mktemp("s3")) as served:
        yield served


@pytest.fixture(autouse=True)
def _files(s3: ServedS3) -> Iterator[None]:
    for name, content in FILES.items():
        path = s3.root / "models" / "bases" / "llama" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    yield
    shutil.rmtree(s3.root / "models")
    with warnings.catch_warnings():  # of refused requests, as for adapters
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    folder = tmp_path / "credentials" / "_model"
    folder.mkdir(parents=True)
    (folder / "accessKeyId").write_text(f"{ACCESS_KEY}\n")
    (folder / "secretAccessKey").write_text(f"{SECRET_KEY}\n")
    return folder


def get(s3: ServedS3, credentials: Path, url: str = URL, endpoint: str | None = None, *, weights: bool = True) -> Path:
    model = BucketModel(url, endpoint=endpoint or s3.url, region=None, credentials=credentials, retry_seconds=(0.01,))
    return ModelCache(credentials.parents[1] / "cache", patience=PATIENCE).get(model, weights=weights)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_a_model_needs_is_brought_once(s3: ServedS3, credentials: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = get(s3, credentials)
    assert folder.parent.name == "s3--models--bases--llama"
    assert names(folder) == WANTED
    assert all((folder / name).read_bytes() == FILES[name] for name in WANTED)
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, "refs"}
    before = folder.stat()
    with caplog.at_level(logging.INFO):
        assert get(s3, credentials) == folder
    assert f"{URL}@{folder.name[:12]} is in the cache" in caplog.text
    assert (folder.stat().st_ino, folder.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_other_content_is_another_folder(s3: ServedS3, credentials: Path) -> None:
    first = get(s3, credentials)
    (s3.root / "models" / "bases" / "llama" / "model-00002-of-00002.safetensors").write_bytes(b"3" * 500_000)
    second = get(s3, credentials)
    assert first != second
    assert (first / "model-00002-of-00002.safetensors").read_bytes()[:1] == b"2", "a pod may still read it"
    assert (second / "model-00002-of-00002.safetensors").read_bytes() == b"3" * 500_000


def test_texts_alone(s3: ServedS3, credentials: Path) -> None:
    assert names(get(s3, credentials, weights=False)) == {name for name in WANTED if name.endswith(".json")}


def test_a_server_that_is_away_stops_no_start(
    s3: ServedS3, credentials: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = "http://127.0.0.1:9"
    with pytest.raises(ConfigError, match=rf"{URL} is no folder, and S3 did not give it: .*did not answer"):
        get(s3, credentials, endpoint=away)
    folder = get(s3, credentials)
    with caplog.at_level(logging.WARNING):
        assert get(s3, credentials, endpoint=away) == folder
    assert f"taking what it was, {folder.name}" in caplog.text


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://nothing-here/bases/llama", "404 NoSuchBucket"),
        ("s3://models/bases/other", "there is no config.json"),
        ("s3://models", "there is no config.json"),
    ],
)
def test_what_is_not_there(s3: ServedS3, credentials: Path, url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        get(s3, credentials, url)


def test_a_wrong_key_is_told_without_it(s3: ServedS3, credentials: Path) -> None:
    (credentials / "secretAccessKey").write_text("wrong-one")
    with pytest.raises(ConfigError, match="S3 answered 403") as caught:
        get(s3, credentials)
    assert "wrong-one" not in str(caught.value)
    assert ACCESS_KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///llama", "s3://models/a/../b", "s3://models/a//b"])
def test_what_is_no_url_of_a_bucket(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="is not s3://BUCKET/PREFIX"):
        model_folder(url, revision=None, cache_dir=tmp_path, credentials_dir=tmp_path)


def test_a_bucket_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model-revision: goes with a hub repository"):
        model_folder(URL, revision="main", cache_dir=tmp_path, credentials_dir=tmp_path)


@pytest.mark.parametrize("model", ["acme/llama", "/"])
@pytest.mark.parametrize(
    ("endpoint", "region", "named"), [("http://s3", None, "--model-s3-endpoint"), (None, "eu-1", "--model-s3-region")]
)
def test_options_of_buckets_go_with_one(
    tmp_path: Path, model: str, endpoint: str | None, region: str | None, named: str
) -> None:
    with pytest.raises(ConfigError, match=f"{named}: goes with a model in a bucket"):
        find_model(model, revision=None, credentials_dir=tmp_path, s3_endpoint=endpoint, s3_region=region)


def test_serve_finds_the_pods_credentials(s3: ServedS3, credentials: Path, tmp_path: Path) -> None:
    found = find_model(
        URL, revision=None, credentials_dir=credentials.parent, s3_endpoint=s3.url, s3_region="eu-central-1"
    )
    assert not isinstance(found, Path)
    told: list[int] = []
    folder = ModelCache(tmp_path / "models", patience=PATIENCE).get(found, tell=told.append)
    assert folder.is_relative_to(tmp_path / "models")
    assert names(folder) == WANTED
    assert told == sorted(told)
    assert all(0 <= percent <= 100 for percent in told)
    assert told
