"""Folders, hubs and buckets: what each gives, what each refuses, and going on where a download broke off."""

import dataclasses
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.adapter_files import write_adapter
from support.servers import ACCESS_KEY, SECRET_KEY, ServedHub, ServedS3, serve_hub, serve_s3
from support.versioned_s3 import VersionedBucket, serve_versioned

from lorafleet_common.errors import ConfigError
from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterSource, SourceRef
from lorafleet_inference.adapters.files import FoundFile
from lorafleet_inference.adapters.sources.base import Listing, Place, Source
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.adapters.sources.folder import FolderSource
from lorafleet_inference.adapters.sources.hub import HubSource
from lorafleet_inference.adapters.sources.registry import Sources, ad_hoc
from lorafleet_inference.adapters.sources.s3 import PART_BYTES, S3Source
from lorafleet_inference.errors import AdapterError

TOKEN = "hf_secret_of_the_tests"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedHub]:
    root = tmp_path_factory.mktemp("hub")
    write_adapter(root / "red")
    for number, revision in enumerate(("main", "v2")):
        write_adapter(root / "two" / f"@{revision}", seed=number)
    with serve_hub(root, token=TOKEN) as served:
        yield served


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedS3]:
    root = tmp_path_factory.mktemp("s3")
    write_adapter(root / "models" / "team" / "red")
    (root / "models" / "team" / "red" / "README.md").write_text("hello")
    with serve_s3(root) as served:
        yield served


def secret(folder: Path, **values: str) -> MountedSecret:
    folder.mkdir(exist_ok=True)
    for key, value in values.items():
        (folder / key).write_text(f"{value}\n")
    return MountedSecret(folder)


def hub_source(hub: ServedHub, tmp_path: Path, token: str = TOKEN) -> HubSource:
    return HubSource("hub", endpoint=hub.url, secret=secret(tmp_path / "hub-secret", token=token))


OPENED: list[S3Source] = []
"""Closed after each test."""


def s3_source(s3: ServedS3, tmp_path: Path, *, key: str = SECRET_KEY, bucket: str = "models") -> S3Source:
    keys = secret(tmp_path / "s3-secret", accessKeyId=ACCESS_KEY, secretAccessKey=key)
    source = S3Source("bucket", bucket, prefix="team/", endpoint=s3.url, region=None, secret=keys)
    OPENED.append(source)
    return source


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()
    with warnings.catch_warnings():
        # botocore leaves the connection of a refused request to the garbage collector, which warns in whatever test it runs
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def reason_of(source: Source, place: Place) -> Reason:
    with pytest.raises(AdapterError) as caught:
        source.list_files(place)
    for hidden in (TOKEN, ACCESS_KEY, SECRET_KEY, "wrong-one"):
        assert hidden not in str(caught.value)
    return caught.value.reason


def fetch_all(source: Source, listing: Listing, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    for file in listing.files:
        source.fetch(listing.place, file, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


class TestFolder:
    def test_gives_the_files_of_an_adapter(self, tmp_path: Path) -> None:
        folder = write_adapter(tmp_path / "volume" / "team" / "red")
        (folder / "optimizer.pt").write_bytes(b"large")
        source = FolderSource("volume", tmp_path / "volume")
        listing = source.list_files(Place("team/red"))
        assert {file.name: file.size_bytes for file in listing.files} == {
            name: (folder / name).stat().st_size for name in ("adapter_config.json", "adapter_model.safetensors")
        }
        assert fetch_all(source, listing, tmp_path / "out").keys() == {file.name for file in listing.files}

    @pytest.mark.parametrize("path", ["team/red", "escape", "parent"])
    def test_links_do_not_lead_out(self, tmp_path: Path, path: str) -> None:
        outside = write_adapter(tmp_path / "outside")
        volume = tmp_path / "volume"
        (volume / "team" / "red").mkdir(parents=True)
        for file in outside.iterdir():
            (volume / "team" / "red" / file.name).symlink_to(file)
        (volume / "escape").symlink_to(outside)
        (volume / "parent").symlink_to("..")
        place = Place("parent/outside" if path == "parent" else path)
        assert reason_of(FolderSource("volume", volume), place) is Reason.SOURCE_NOT_ALLOWED

    def test_a_link_that_is_changed_after_the_listing_gives_nothing(self, tmp_path: Path) -> None:
        volume, outside = tmp_path / "volume", tmp_path / "secret"
        folder = write_adapter(volume / "red")
        outside.write_text("for nobody's eyes")
        source = FolderSource("volume", volume)
        listing = source.list_files(Place("red"))
        (folder / "adapter_config.json").unlink()
        (folder / "adapter_config.json").symlink_to(outside)
        with pytest.raises(AdapterError) as caught:
            fetch_all(source, listing, tmp_path / "out")
        assert caught.value.reason is Reason.SOURCE_NOT_ALLOWED

    def test_links_inside_are_followed_as_kubernetes_makes_them(self, tmp_path: Path) -> None:
        volume = tmp_path / "volume"
        write_adapter(volume / "..2026" / "red")
        (volume / "..data").symlink_to("..2026")
        (volume / "red").symlink_to("..data/red")
        assert FolderSource("volume", volume).list_files(Place("red")).files

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        source = FolderSource("volume", tmp_path)
        assert reason_of(source, Place("nowhere")) is Reason.ARTIFACT_NOT_FOUND
        assert reason_of(source, Place("file")) is Reason.ARTIFACT_NOT_FOUND

    def test_a_file_that_grows_is_not_written_beyond_its_size(self, tmp_path: Path) -> None:
        folder = write_adapter(tmp_path / "red")
        source = FolderSource("volume", tmp_path)
        listing = source.list_files(Place("red"))
        (folder / "adapter_model.safetensors").write_bytes(bytes(10 << 20))
        with pytest.raises(AdapterError, match="larger than"):
            fetch_all(source, listing, tmp_path / "out")
        assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 1 << 20


class TestHub:
    def test_a_branch_becomes_a_commit_and_gives_its_files(self, hub: ServedHub, tmp_path: Path) -> None:
        source = hub_source(hub, tmp_path)
        listing = source.list_files(Place("acme/two", "v2"))
        assert listing.place.revision is not None
        assert len(listing.place.revision) == 40
        assert fetch_all(source, listing, tmp_path / "out") == content_of(hub.root / "two" / "@v2")
        assert source.list_files(listing.place) == listing, "a commit means itself"
        default = source.list_files(Place("acme/two"))
        assert default.place.revision not in (None, listing.place.revision)

    def test_a_download_goes_on_where_it_broke_off(self, hub: ServedHub, tmp_path: Path) -> None:
        source = hub_source(hub, tmp_path)
        listing = source.list_files(Place("acme/red"))
        weights = next(file for file in listing.files if file.name.endswith("safetensors"))
        hub.trouble.cut_after_bytes, hub.trouble.times = 100, 1
        with pytest.raises(AdapterError) as caught:
            source.fetch(listing.place, weights, tmp_path)
        assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
        assert (tmp_path / weights.name).stat().st_size == 100
        source.fetch(listing.place, weights, tmp_path)
        assert (tmp_path / weights.name).read_bytes() == (hub.root / "red" / weights.name).read_bytes()
        assert hub.trouble.requests[-1].endswith("bytes=100-")

    def test_a_hub_may_send_elsewhere_and_its_token_stays_with_it(self, hub: ServedHub, tmp_path: Path) -> None:
        """Hubs keep large files in stores of others: the one that is declared says where they are."""
        source = hub_source(hub, tmp_path)
        listing = source.list_files(Place("acme/red"))
        with serve_hub(hub.root) as store:
            hub.trouble.moved_to = store.url
            hub.trouble.authorizations.clear()
            try:
                assert fetch_all(source, listing, tmp_path / "out") == content_of(hub.root / "red")
            finally:
                hub.trouble.moved_to = ""
            assert store.trouble.authorizations == {""}
        assert hub.trouble.authorizations == {f"Bearer {TOKEN}"}

    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            (401, Reason.UNAUTHORIZED),
            (403, Reason.UNAUTHORIZED),
            (404, Reason.ARTIFACT_NOT_FOUND),
            (429, Reason.SOURCE_UNAVAILABLE),
            (500, Reason.SOURCE_UNAVAILABLE),
            (503, Reason.SOURCE_UNAVAILABLE),
        ],
    )
    def test_statuses(self, hub: ServedHub, tmp_path: Path, status: int, reason: Reason) -> None:
        source = hub_source(hub, tmp_path)
        listing = source.list_files(Place("acme/red"))
        hub.trouble.status = status
        for ask in (lambda: source.list_files(listing.place), lambda: fetch_all(source, listing, tmp_path / "out")):
            hub.trouble.times = 1
            with pytest.raises(AdapterError) as caught:
                ask()
            assert caught.value.reason is reason
        hub.trouble.status = 0

    def test_what_is_not_there_or_not_allowed(self, hub: ServedHub, tmp_path: Path) -> None:
        source = hub_source(hub, tmp_path)
        assert reason_of(source, Place("acme/none")) is Reason.ARTIFACT_NOT_FOUND
        assert reason_of(source, Place("acme/red", "none")) is Reason.ARTIFACT_NOT_FOUND
        assert reason_of(hub_source(hub, tmp_path, "wrong-one"), Place("acme/red")) is Reason.UNAUTHORIZED
        nobody = HubSource("hub", endpoint="http://127.0.0.1:1", secret=secret(tmp_path / "none"))
        assert reason_of(nobody, Place("acme/red")) is Reason.SOURCE_UNAVAILABLE

    def test_no_token_of_the_environment_is_sent_to_a_declared_hub(
        self, hub: ServedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        source = HubSource("hub", endpoint=hub.url, secret=secret(tmp_path / "none"))
        assert reason_of(source, Place("acme/red")) is Reason.UNAUTHORIZED

    def test_only_declared_repositories(self) -> None:
        source = HubSource("hub", endpoint=None, repos=("acme/red", "open/*"), secret=None)
        for allowed in ("acme/red", "open/anything"):
            source.check(Place(allowed))
        for refused in ("acme/blue", "acme/red2", "opener/x", "red"):
            with pytest.raises(AdapterError) as caught:
                source.check(Place(refused))
            assert caught.value.reason is Reason.SOURCE_NOT_ALLOWED


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
class TestS3:
    def test_gives_the_files_of_an_adapter(self, s3: ServedS3, tmp_path: Path) -> None:
        source = s3_source(s3, tmp_path)
        listing = source.list_files(Place("red"))
        assert fetch_all(source, listing, tmp_path / "out") == content_of(s3.root / "models" / "team" / "red")

    def test_many_parts_come_in_order_and_a_broken_download_goes_on(self, s3: ServedS3, tmp_path: Path) -> None:
        data = b"".join(number.to_bytes(4, "big") for number in range((2 * PART_BYTES + PART_BYTES // 2) // 4))
        folder = s3.root / "models" / "team" / "large"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(data)
        source = s3_source(s3, tmp_path)
        listing = source.list_files(Place("large"))
        target = tmp_path / "adapter_model.safetensors"
        target.write_bytes(data[: PART_BYTES + 1234])
        source.fetch(listing.place, listing.files[0], tmp_path)
        assert target.read_bytes() == data
        source.fetch(listing.place, listing.files[0], tmp_path)
        assert target.read_bytes() == data, "what is complete stays"

    def test_what_is_not_there_or_not_allowed(self, s3: ServedS3, tmp_path: Path) -> None:
        assert s3_source(s3, tmp_path).list_files(Place("none")).files == ()
        assert reason_of(s3_source(s3, tmp_path, key="wrong-one"), Place("red")) is Reason.UNAUTHORIZED
        assert reason_of(s3_source(s3, tmp_path, bucket="none"), Place("red")) is Reason.ARTIFACT_NOT_FOUND
        nobody = dataclasses.replace(s3, url="http://127.0.0.1:1")
        assert reason_of(s3_source(nobody, tmp_path), Place("red")) is Reason.SOURCE_UNAVAILABLE

    def test_an_object_that_was_replaced_is_not_mixed_with_its_former_self(self, s3: ServedS3, tmp_path: Path) -> None:
        folder = write_adapter(s3.root / "models" / "team" / "changing")
        source = s3_source(s3, tmp_path)
        listing = source.list_files(Place("changing"))
        write_adapter(folder, seed=9)
        with pytest.raises(AdapterError) as caught:
            fetch_all(source, listing, tmp_path / "out")
        assert caught.value.retryable

    def test_keys_that_rotate_are_read_anew(self, s3: ServedS3, tmp_path: Path) -> None:
        source = s3_source(s3, tmp_path, key="wrong-one")
        assert reason_of(source, Place("red")) is Reason.UNAUTHORIZED
        secret(tmp_path / "s3-secret", secretAccessKey=SECRET_KEY)
        assert source.list_files(Place("red")).files


@pytest.fixture
def versioned() -> Iterator[VersionedBucket]:
    with serve_versioned() as bucket:
        bucket.put("team/red/adapter_config.json", b"first config")
        bucket.put("team/red/adapter_model.safetensors", b"first weights")
        yield bucket


class TestVersionedS3:
    def source(self, bucket: VersionedBucket, tmp_path: Path) -> S3Source:
        keys = secret(tmp_path / "keys", accessKeyId=ACCESS_KEY, secretAccessKey=SECRET_KEY)
        OPENED.append(S3Source("bucket", "models", prefix="team", endpoint=bucket.url, region=None, secret=keys))
        return OPENED[-1]

    def test_the_version_that_was_listed_is_read(self, versioned: VersionedBucket, tmp_path: Path) -> None:
        source = self.source(versioned, tmp_path)
        listing = source.list_files(Place("red"))
        assert {file.version_id for file in listing.files} == {"v1"}
        versioned.put("team/red/adapter_model.safetensors", b"SECOND WEIGHTS")
        read = fetch_all(source, listing, tmp_path / "out")
        assert read == {"adapter_config.json": b"first config", "adapter_model.safetensors": b"first weights"}
        assert "v2" in {file.version_id for file in source.list_files(Place("red")).files}

    def test_a_version_that_is_gone(self, versioned: VersionedBucket, tmp_path: Path) -> None:
        file = FoundFile("adapter_config.json", 12, version_id="v9")
        with pytest.raises(AdapterError) as caught:
            self.source(versioned, tmp_path).fetch(Place("red"), file, tmp_path)
        assert caught.value.reason is Reason.ARTIFACT_NOT_FOUND

    def test_an_unversioned_object_must_be_the_one_that_was_listed(
        self, versioned: VersionedBucket, tmp_path: Path
    ) -> None:
        file = FoundFile("adapter_config.json", 12, tag='"of another"')
        with pytest.raises(AdapterError) as caught:
            self.source(versioned, tmp_path).fetch(Place("red"), file, tmp_path)
        assert (caught.value.reason, caught.value.retryable) == (Reason.SOURCE_UNAVAILABLE, True)

    @pytest.mark.parametrize(
        ("status", "code", "reason"),
        [
            (403, "AccessDenied", Reason.UNAUTHORIZED),
            (403, "InvalidAccessKeyId", Reason.UNAUTHORIZED),
            (400, "ExpiredToken", Reason.UNAUTHORIZED),
            (404, "NoSuchBucket", Reason.ARTIFACT_NOT_FOUND),
            (429, "TooManyRequests", Reason.SOURCE_UNAVAILABLE),
            (500, "InternalError", Reason.SOURCE_UNAVAILABLE),
            (503, "SlowDown", Reason.SOURCE_UNAVAILABLE),
        ],
    )
    def test_codes(self, versioned: VersionedBucket, tmp_path: Path, *, status: int, code: str, reason: Reason) -> None:
        versioned.fail = (status, code)
        with pytest.raises(AdapterError, match=code) as caught:
            self.source(versioned, tmp_path).list_files(Place("red"))
        assert caught.value.reason is reason
        assert len(versioned.asked) == 1, "the store decides whether to try again"


DECLARED = [
    AdapterSource.model_validate({"name": "vol", "volume": {"claimName": "c", "path": "adapters/"}}),
    AdapterSource.model_validate({"name": "bucket", "s3": {"bucket": "models", "prefix": "team/"}}),
    AdapterSource.model_validate({"name": "hub", "huggingFace": {"repos": ["acme/*"]}}),
]


@pytest.mark.parametrize("kind", ["huggingFace", "oci", "s3"])
@pytest.mark.parametrize("is_mounted", [False, True], ids=["no folder", "empty folder"])
def test_declared_secret_that_is_missing_is_named(tmp_path: Path, kind: str, is_mounted: bool) -> None:
    """Its volume is optional, so that the pod starts: the adapters of the source say what is missing."""
    ref = {"credentialsSecretRef": {"name": "absent"}}
    fields = {"oci": {"endpoint": "http://127.0.0.1:9"}, "s3": {"bucket": "models", "endpoint": "http://127.0.0.1:9"}}
    place = {**fields.get(kind, {}), **ref}
    declared = AdapterSource.model_validate({"name": "b", kind: place})
    if is_mounted:
        (tmp_path / "b").mkdir()
    made = Sources([declared], volumes_dir=tmp_path, credentials_dir=tmp_path)
    key = "path" if kind == "s3" else "repo"
    from lorafleet_contract.sources import SourceRef

    source, where = made.of(SourceRef.model_validate({"name": "b", key: "acme/red"}))
    with pytest.raises(AdapterError, match="Secret absent of source b does not exist") as caught:
        source.list_files(where)
    assert caught.value.reason is Reason.UNAUTHORIZED


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(DECLARED, volumes_dir=tmp_path, credentials_dir=tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "name", "place"),
    [
        ("{volumes}/vol/adapters/red", "vol", "red"),
        ("s3://models/team/red/", "bucket", "red"),
        ("acme/red", "hub", "acme/red"),
        ("hf:acme/red@v2", "hub", "acme/red"),
    ],
)
def test_a_path_of_vllm_finds_its_declared_source(
    sources: Sources, tmp_path: Path, text: str, name: str, place: str
) -> None:
    ref = sources.ref_of(text.replace("{volumes}", str(tmp_path)))
    assert (ref.name, ref.repo or ref.path) == (name, place)
    assert ref.revision == ("v2" if "@" in text else None)


@pytest.mark.parametrize(
    "text",
    ["/etc/passwd", "{volumes}/vol/secrets", "{volumes}/vol/adapters/../secrets", "s3://models/other", "s3://x/y",
     "evil/repo", "", "relative"],
)  # fmt: skip
def test_everything_else_is_not_allowed(sources: Sources, tmp_path: Path, text: str) -> None:
    with pytest.raises(AdapterError) as caught:
        sources.ref_of(text.replace("{volumes}", str(tmp_path)))
    assert caught.value.reason is Reason.SOURCE_NOT_ALLOWED


def test_undeclared_sources_refuse_everything(sources: Sources) -> None:
    source, place = sources.of(SourceRef(name="elsewhere", path="red"))
    for ask in (lambda: source.check(place), lambda: source.list_files(place)):
        with pytest.raises(AdapterError, match="'elsewhere'") as caught:
            ask()
        assert caught.value.reason is Reason.SOURCE_NOT_ALLOWED


def test_what_the_command_line_may_name(tmp_path: Path) -> None:
    source, place = ad_hoc("hf:acme/red@v2")
    assert isinstance(source, HubSource)
    assert place == Place("acme/red", "v2")
    source, place = ad_hoc("s3://models/team/red")
    assert isinstance(source, S3Source)
    assert source.show(place) == "s3://models/team/red"
    source, place = ad_hoc(str(write_adapter(tmp_path / "red")))
    assert source.show(place) == str(tmp_path / "red")
    assert len(source.list_files(place).files) == 2
    with pytest.raises(AdapterError):
        ad_hoc("s3://models")


def test_an_endpoint_that_is_no_url_stops_the_start(tmp_path: Path) -> None:
    wrong = AdapterSource.model_validate({"name": "x", "s3": {"bucket": "b", "endpoint": "minio:9000"}})
    with pytest.raises(ConfigError, match="minio:9000"):
        Sources([wrong], volumes_dir=tmp_path, credentials_dir=tmp_path)


def test_sources_say_what_they_are(sources: Sources) -> None:
    kinds = {name: sources.of(SourceRef(name=name, path="red"))[0].kind for name in ("vol", "bucket", "hub", "none")}
    assert kinds == {"vol": "local", "bucket": "s3", "hub": "hub", "none": None}
