"""Adapters in a container registry: a real one that `oras` pushes to, and one with trouble before it."""

import base64
import http.server
import json
import ssl
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from localcluster.gobuild import go_problem
from support.adapter_files import base_facts, write_adapter
from support.registries import PASSWORD, USERNAME, ServedRegistry, new_certificate, serve_registry
from support.registry_front import RegistryFront, serve_front

from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterSource, SourceRef
from lorafleet_inference.adapters.cache import NodeCache
from lorafleet_inference.adapters.digest import digest_of
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.adapters.sources.base import Kind, Listing, Place, Source
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.adapters.sources.oci import OciSource
from lorafleet_inference.adapters.sources.registry import Sources, ad_hoc
from lorafleet_inference.adapters.store import AdapterStore
from lorafleet_inference.errors import AdapterError

pytestmark = pytest.mark.skipif(go_problem() is not None, reason="the registry is built with Go")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedRegistry]:
    with serve_registry(tmp_path_factory.mktemp("open") / "registry") as served:
        yield served


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_adapter(tmp_path_factory.mktemp("adapter") / "red")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def pushed(registry: ServedRegistry, adapter: Path) -> str:
    """The digest of `team/red:v1`, one layer a file."""
    return registry.push("team/red:v1", adapter, CONFIG, WEIGHTS, "chat_template.jinja")


@pytest.fixture(scope="module")
def packed(registry: ServedRegistry, adapter: Path) -> str:
    """The digest of `team/packed:v1`: the folder, which `oras` packs into one layer."""
    return registry.push("team/packed:v1", adapter.parent, "red")


@pytest.fixture
def front(registry: ServedRegistry) -> Iterator[RegistryFront]:
    with serve_front(registry.url) as served:
        yield served


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


OPENED: list[OciSource] = []
"""Closed after each test."""


def source_of(url: str, secret: MountedSecret | None = None, *repos: str) -> OciSource:
    OPENED.append(OciSource("oci", url, repos=repos, secret=secret))
    return OPENED[-1]


def docker_config(folder: Path, host: str, *, password: str = PASSWORD) -> MountedSecret:
    """A Secret as the kubelet mounts it."""
    auth = base64.b64encode(f"{USERNAME}:{password}".encode()).decode()
    (folder / "..data").mkdir(parents=True, exist_ok=True)
    (folder / "..data" / ".dockerconfigjson").write_text(json.dumps({"auths": {f"https://{host}": {"auth": auth}}}))
    if not (folder / ".dockerconfigjson").exists():
        (folder / ".dockerconfigjson").symlink_to("..data/.dockerconfigjson")
    return MountedSecret(folder, "regcred")


def fetch_all(source: Source, listing: Listing, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    for file in listing.files:
        source.fetch(listing.place, file, folder)
    return content_of(folder)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def error_of(source: Source, place: Place) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        source.list_files(place)
    assert PASSWORD not in str(caught.value)
    assert "token-" not in str(caught.value)
    return caught.value


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AdapterStore]:
    async def nothing_to_free() -> bool:
        return False

    made = AdapterStore(
        NodeCache.open(tmp_path / "cache", 1 << 20),
        lambda folder: inspect_adapter(folder, base_facts(), 16).facts,
        nothing_to_free,
        first_pause_seconds=0.01,
    )
    yield made
    await made.close()


class TestFiles:
    def test_gives_the_layers_at_the_digest_that_a_tag_means(
        self, registry: ServedRegistry, adapter: Path, pushed: str, tmp_path: Path
    ) -> None:
        source = source_of(registry.url)
        listing = source.list_files(Place("team/red", "v1"))
        assert listing.place == Place("team/red", pushed)
        assert fetch_all(source, listing, tmp_path / "out") == content_of(adapter)
        assert source_of(registry.url).list_files(listing.place) == listing, "a digest means itself"

    def test_a_tag_that_moves_leaves_what_was_resolved(
        self, registry: ServedRegistry, adapter: Path, tmp_path: Path
    ) -> None:
        source = source_of(registry.url)
        registry.push("team/moving:latest", adapter, CONFIG, WEIGHTS)
        first = source.list_files(Place("team/moving"))
        newer = write_adapter(tmp_path / "newer", seed=7)
        registry.push("team/moving:latest", newer, CONFIG, WEIGHTS)
        second = source.list_files(Place("team/moving"))
        assert second.place.revision != first.place.revision
        assert fetch_all(source, first, tmp_path / "one")[WEIGHTS] == (adapter / WEIGHTS).read_bytes()
        assert fetch_all(source, second, tmp_path / "two")[WEIGHTS] == (newer / WEIGHTS).read_bytes()

    def test_layers_may_be_named_with_their_folder(
        self, registry: ServedRegistry, adapter: Path, tmp_path: Path
    ) -> None:
        registry.push("team/foldered:v1", adapter.parent, f"red/{CONFIG}", f"red/{WEIGHTS}:application/x-weights")
        source = source_of(registry.url)
        assert fetch_all(source, source.list_files(Place("team/foldered", "v1")), tmp_path / "out").keys() == {
            CONFIG,
            WEIGHTS,
        }

    @pytest.mark.usefixtures("pushed")
    def test_a_download_goes_on_where_it_broke_off(self, front: RegistryFront, adapter: Path, tmp_path: Path) -> None:
        source = source_of(front.url)
        listing = source.list_files(Place("team/red", "v1"))
        weights = next(file for file in listing.files if file.name == WEIGHTS)
        front.cut_after_bytes = 100
        with pytest.raises(AdapterError) as caught:
            source.fetch(listing.place, weights, tmp_path)
        assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
        assert (tmp_path / WEIGHTS).stat().st_size == 100
        source.fetch(listing.place, weights, tmp_path)
        assert (tmp_path / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
        assert front.requests[-1][1] == "bytes=100-"

    @pytest.mark.usefixtures("pushed")
    def test_an_endless_layer_is_not_written_beyond_its_size(self, front: RegistryFront, tmp_path: Path) -> None:
        source = source_of(front.url)
        listing = source.list_files(Place("team/red", "v1"))
        front.changed = bytes(10 << 20)
        with pytest.raises(AdapterError, match="larger than"):
            fetch_all(source, listing, tmp_path / "out")
        assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 1 << 20


class TestArchive:
    def test_gives_the_files_of_the_folder(
        self, registry: ServedRegistry, adapter: Path, packed: str, tmp_path: Path
    ) -> None:
        source = source_of(registry.url)
        listing = source.list_files(Place("team/packed", "v1"))
        assert listing.place.revision == packed
        assert fetch_all(source, listing, tmp_path / "out") == content_of(adapter)
        another = source_of(registry.url)  # as another pod, which is told what it is
        assert fetch_all(another, listing, tmp_path / "other") == content_of(adapter)

    @pytest.mark.usefixtures("packed")
    def test_it_is_read_twice_and_not_again_for_each_file(self, front: RegistryFront, tmp_path: Path) -> None:
        source = source_of(front.url)
        fetch_all(source, source.list_files(Place("team/packed", "v1")), tmp_path / "out")
        assert sum("/blobs/" in path for path, _, _ in front.requests) == 2

    @pytest.mark.parametrize("where", ["../red", "red/../../red"])
    def test_one_that_leads_out_is_refused(
        self, registry: ServedRegistry, adapter: Path, tmp_path: Path, where: str
    ) -> None:
        with tarfile.open(tmp_path / "adapter.tar", "w") as archive:
            archive.add(adapter / CONFIG, f"red/{CONFIG}")
            archive.add(adapter / WEIGHTS, f"{where}/{WEIGHTS}", recursive=False)
        registry.push("team/escaping:v1", tmp_path, "adapter.tar")
        error = error_of(source_of(registry.url), Place("team/escaping", "v1"))
        assert error.reason is Reason.ARTIFACT_INVALID
        assert "leads out" in str(error)

    def test_a_truncated_layer(self, registry: ServedRegistry, tmp_path: Path) -> None:
        folder = write_adapter(tmp_path / "cut", seed=11)
        registry.push("team/cut:v1", folder.parent, "cut")
        source = source_of(registry.url)
        place = source.list_files(Place("team/cut", "v1")).place
        blob = registry.blob(layers_of(registry, "team/cut", str(place.revision))[0]["digest"])
        blob.write_bytes(blob.read_bytes()[:-10])
        assert error_of(source_of(registry.url), place).reason is Reason.SOURCE_UNAVAILABLE

    def test_a_layer_that_is_not_its_digest(self, registry: ServedRegistry, tmp_path: Path) -> None:
        folder = write_adapter(tmp_path / "other", seed=12)
        registry.push("team/other:v1", folder.parent, "other")
        layer = layers_of(registry, "team/other", "v1")[0]
        blob = registry.blob(layer["digest"])
        data = blob.read_bytes()
        blob.write_bytes(data[:4] + b"\x01" + data[5:])  # of gzip's header: the time, which changes no file
        assert error_of(source_of(registry.url), Place("team/other", "v1")).reason is Reason.DIGEST_MISMATCH


def layers_of(registry: ServedRegistry, repo: str, reference: str) -> list[dict[str, str]]:
    source = source_of(registry.url)
    body = source._client.manifest(repo, reference)[1]
    return json.loads(body)["layers"]


class TestTrouble:
    def test_what_is_not_there_or_no_name(self, registry: ServedRegistry, pushed: str) -> None:
        source = source_of(registry.url)
        for repo, revision in (
            ("team/none", "v1"), ("team/red", "v9"), ("team/red", "sha256:" + "0" * 64), ("Team/Red", "v1"),
            ("team/red", "a/b"), ("team/red", pushed.replace("sha256", "sha512")),
        ):  # fmt: skip
            assert error_of(source, Place(repo, revision)).reason is Reason.ARTIFACT_NOT_FOUND, (repo, revision)
        assert error_of(source_of("http://127.0.0.1:1"), Place("team/red")).reason is Reason.SOURCE_UNAVAILABLE

    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            (403, Reason.UNAUTHORIZED),
            (404, Reason.ARTIFACT_NOT_FOUND),
            (429, Reason.SOURCE_UNAVAILABLE),
            (503, Reason.SOURCE_UNAVAILABLE),
        ],
    )
    @pytest.mark.usefixtures("pushed")
    def test_statuses(self, front: RegistryFront, tmp_path: Path, status: int, reason: Reason) -> None:
        source = source_of(front.url)
        listing = source.list_files(Place("team/red", "v1"))
        front.status = status
        assert error_of(source, Place("team/red", "v1")).reason is reason
        with pytest.raises(AdapterError) as caught:
            fetch_all(source, listing, tmp_path / "out")
        assert caught.value.reason is reason

    def test_a_manifest_that_is_not_its_digest(self, front: RegistryFront, pushed: str) -> None:
        front.changed = b'{"layers": []}'
        assert error_of(source_of(front.url), Place("team/red", pushed)).reason is Reason.DIGEST_MISMATCH

    def test_a_manifest_without_end(self, front: RegistryFront) -> None:
        front.changed = bytes(5 << 20)
        error = error_of(source_of(front.url), Place("team/red", "v1"))
        assert (error.reason, "more than" in str(error)) == (Reason.ARTIFACT_INVALID, True)

    def test_an_artifact_that_is_something_else(self, registry: ServedRegistry, tmp_path: Path) -> None:
        (tmp_path / "notes.md").write_text("nothing")
        registry.push("team/notes:v1", tmp_path, "notes.md:text/markdown")
        error = error_of(source_of(registry.url), Place("team/notes", "v1"))
        assert error.reason is Reason.ARTIFACT_INVALID
        assert "its layers are notes.md" in str(error)

    async def test_a_blob_that_is_not_its_digest_reaches_no_pod(
        self, registry: ServedRegistry, tmp_path: Path, store: AdapterStore
    ) -> None:
        folder = write_adapter(tmp_path / "swapped", seed=21)
        registry.push("team/swapped:v1", folder, CONFIG, WEIGHTS)
        layer = next(one for one in layers_of(registry, "team/swapped", "v1") if one["size"] > 1000)
        blob = registry.blob(layer["digest"])
        blob.write_bytes(blob.read_bytes()[:-1] + b"\x55")
        with pytest.raises(AdapterError) as caught:
            await store.resolve(source_of(registry.url), Place("team/swapped", "v1"))
        assert caught.value.reason is Reason.DIGEST_MISMATCH

    @pytest.mark.usefixtures("pushed", "packed")
    async def test_it_is_the_same_adapter_however_it_is_packed(
        self, registry: ServedRegistry, adapter: Path, store: AdapterStore
    ) -> None:
        source = source_of(registry.url)
        artifacts = [await store.resolve(source, Place(f"team/{repo}", "v1")) for repo in ("red", "packed")]
        assert {artifact.digest for artifact in artifacts} == {digest_of(adapter)}
        assert store.has(artifacts[0].digest)


class TestRights:
    def test_a_login_of_a_docker_config(self, adapter: Path, tmp_path: Path) -> None:
        with serve_registry(tmp_path / "private", is_private=True) as private:
            private.push("team/red:v1", adapter, CONFIG, WEIGHTS)
            place = Place("team/red", "v1")
            secret = docker_config(tmp_path / "secret", private.address)
            source = source_of(private.url, secret)
            assert len(fetch_all(source, source.list_files(place), tmp_path / "out")) == 2
            docker_config(tmp_path / "secret", private.address, password="wrong")
            assert error_of(source, place).reason is Reason.UNAUTHORIZED, "what rotates is read anew"
            assert error_of(source_of(private.url), place).reason is Reason.UNAUTHORIZED
            other = source_of(private.url, docker_config(tmp_path / "others", "elsewhere.example"))
            assert "Secret regcred of source oci has no username and password" in str(error_of(other, place))
            gone = source_of(private.url, MountedSecret(tmp_path / "gone", "regcred"))
            assert "does not exist" in str(error_of(gone, place))

    @pytest.mark.usefixtures("pushed")
    def test_a_token_is_asked_for_once_and_for_reading_only(
        self, registry: ServedRegistry, adapter: Path, tmp_path: Path
    ) -> None:
        with serve_front(registry.url, wants_token=True) as front:
            source = source_of(front.url, docker_config(tmp_path / "secret", front.address))
            assert fetch_all(source, source.list_files(Place("team/red", "v1")), tmp_path / "out") == content_of(
                adapter
            )
            assert front.scopes == ["repository:team/red:pull"]
            front.num_tokens += 1  # the token of before is not taken any more
            assert source.list_files(Place("team/red", "v1")).files
            assert len(front.scopes) == 2
            nobody = source_of(front.url)
            assert error_of(nobody, Place("team/red", "v1")).reason is Reason.UNAUTHORIZED

    @pytest.mark.usefixtures("pushed")
    def test_another_host_that_it_sends_to_gets_no_token(
        self, registry: ServedRegistry, adapter: Path, tmp_path: Path
    ) -> None:
        with serve_front(registry.url, wants_token=True) as front, serve_front(registry.url) as elsewhere:
            front.moved_to = elsewhere.url
            source = source_of(front.url, docker_config(tmp_path / "secret", front.address))
            assert fetch_all(source, source.list_files(Place("team/red", "v1")), tmp_path / "out") == content_of(
                adapter
            )
            assert {right for _, _, right in elsewhere.requests} == {""}
            elsewhere.wants_token = True
            with pytest.raises(AdapterError) as caught:
                fetch_all(source, source.list_files(Place("team/red", "v1")), tmp_path / "again")
            assert caught.value.reason is Reason.UNAUTHORIZED
            assert elsewhere.scopes == [], "its challenge is not answered"

    @pytest.mark.usefixtures("pushed")
    def test_it_is_not_sent_round_and_round(self, front: RegistryFront, tmp_path: Path) -> None:
        source = source_of(front.url)
        listing = source.list_files(Place("team/red", "v1"))
        front.moved_to = front.url
        with pytest.raises(AdapterError, match="redirects more than 5 times"):
            fetch_all(source, listing, tmp_path / "out")

    def test_an_authority_of_its_own_is_trusted_where_the_secret_has_it(self, adapter: Path, tmp_path: Path) -> None:
        place = Place("team/red", "v1")
        with serve_registry(tmp_path / "tls", has_tls=True) as served:
            served.push("team/red:v1", adapter, CONFIG, WEIGHTS)
            error = error_of(source_of(served.url), place)
            assert (error.reason, "certificate is not trusted" in str(error)) == (Reason.SOURCE_UNAVAILABLE, True)
            (tmp_path / "secret").mkdir()
            (tmp_path / "secret" / "ca.crt").write_text(served.authorities or "")
            source = source_of(served.url, MountedSecret(tmp_path / "secret", "ca"))
            assert len(fetch_all(source, source.list_files(place), tmp_path / "out")) == 2
            (tmp_path / "secret" / "ca.crt").write_text("no certificate")
            error = error_of(source, place)
            assert (error.reason, "ca.crt of source oci" in str(error)) == (Reason.UNAUTHORIZED, True)

    @pytest.mark.parametrize(
        ("status", "name", "value", "reason"),
        [
            (307, "location", "http://127.0.0.1:1/elsewhere", Reason.SOURCE_NOT_ALLOWED),
            (307, "location", "ftp://127.0.0.1/elsewhere", Reason.SOURCE_NOT_ALLOWED),
            (401, "www-authenticate", 'Bearer realm="http://127.0.0.1:1/token"', Reason.UNAUTHORIZED),
        ],
    )
    def test_what_was_declared_with_https_stays_there(
        self, tmp_path: Path, status: int, name: str, value: str, reason: Reason
    ) -> None:
        with serve_answer(tmp_path, status, {name: value}) as (url, authorities):
            (tmp_path / "secret").mkdir()
            (tmp_path / "secret" / "ca.crt").write_text(authorities)
            source = source_of(url, MountedSecret(tmp_path / "secret", "ca"))
            assert error_of(source, Place("team/red", "v1")).reason is reason

    def test_only_declared_repositories(self) -> None:
        source = source_of("https://registry.example", None, "team/red", "open/*")
        for allowed in ("team/red", "open/any", "open/deeper/one"):
            source.check(Place(allowed))
        for refused in ("team/blue", "team/red2", "opener/x", "open"):
            with pytest.raises(AdapterError) as caught:
                source.check(Place(refused))
            assert caught.value.reason is Reason.SOURCE_NOT_ALLOWED


@contextmanager
def serve_answer(folder: Path, status: int, headers: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Serve one answer over TLS, whatever is asked; give the URL and the authorities."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for header, text in {**headers, "content-length": "0"}.items():
                self.send_header(header, text)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    certificate = folder / "answer.crt"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key = new_certificate(certificate)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}", certificate.read_text()
        server.shutdown()
        thread.join()


class TestNames:
    def test_declared(self, registry: ServedRegistry, pushed: str, tmp_path: Path) -> None:
        declared = AdapterSource.model_validate({"name": "reg", "oci": {"endpoint": registry.url, "repos": ["team/*"]}})
        sources = Sources([declared], volumes_dir=tmp_path, credentials_dir=tmp_path)
        source, place = sources.of(SourceRef(name="reg", repo="team/red", revision="v1"))
        assert source.kind is Kind.OCI
        assert source.list_files(place).place.revision == pushed
        texts = {
            f"oci://{registry.address}/team/red:v1": "v1",
            f"oci://{registry.address}/team/red@{pushed}": pushed,
            f"oci://{registry.address}/team/red": None,
        }
        for text, revision in texts.items():
            assert sources.ref_of(text) == SourceRef(name="reg", repo="team/red", revision=revision)
        assert sources.place_of(Kind.OCI, "team/red:v1")[1] == place
        for text in (f"oci://{registry.address}/other/red", "oci://elsewhere/team/red", "team/red"):
            with pytest.raises(AdapterError) as caught:
                sources.ref_of(text)
            assert caught.value.reason is Reason.SOURCE_NOT_ALLOWED
        sources.close()

    def test_of_the_command_line(self, registry: ServedRegistry, pushed: str, tmp_path: Path) -> None:
        source, place = ad_hoc(f"oci://{registry.address}/team/red:v1")
        assert source.show(place) == f"oci://{registry.address}/team/red:v1"
        assert source.list_files(place).place.revision == pushed
        source.close()
        for text in ("oci://host", "oci:///team/red", "oci://host/:v1"):
            with pytest.raises(AdapterError):
                ad_hoc(text)

    def test_docker_config_of_the_environment(
        self, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serve_registry(tmp_path / "private", is_private=True) as private:
            private.push("team/red:v1", adapter, CONFIG, WEIGHTS)
            secret = docker_config(tmp_path / "docker", private.address)
            secret.folder.joinpath("config.json").write_text(secret.read(".dockerconfigjson") or "")
            monkeypatch.setenv("DOCKER_CONFIG", str(secret.folder))
            source, place = ad_hoc(f"oci://{private.address}/team/red:v1")
            assert source.list_files(place).files
            source.close()
