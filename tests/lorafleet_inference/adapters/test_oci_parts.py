"""The parts of the source that reads container registries, against what strangers may send: archives, manifests, logins."""

import base64
import gzip
import io
import json
import random
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.sources import archive
from lorafleet_inference.adapters.sources.archive import MAX_HEADER_BYTES, entries
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.adapters.sources.oci_auth import Challenge, Login, login_of, read_challenge
from lorafleet_inference.adapters.sources.oci_manifest import Archive, Elsewhere, Files, read_manifest
from lorafleet_inference.errors import AdapterError

Fill = Callable[[tarfile.TarFile], None]
CONTENT = random.Random(1).randbytes(20_000)


def add(target: tarfile.TarFile, name: str, data: bytes = b"x", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    target.addfile(member, io.BytesIO(data))


def packed(fill: Fill, form: int = tarfile.PAX_FORMAT) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form) as target:
        fill(target)
    return output.getvalue()


def read(data: bytes, *, size: int = 4096, max_bytes: int = 1 << 24) -> dict[str, bytes]:
    """Read an archive that comes in pieces."""
    stream = io.BytesIO(data)
    found = {one.path: one.data.read() for one in entries(lambda: stream.read(size), where="it", max_bytes=max_bytes)}
    assert stream.read() == b"", "all of the stream is seen, so that its digest is"
    return found


def refusal(data: bytes, **bounds: int) -> str:
    with pytest.raises(AdapterError) as caught:
        read(data, **bounds)
    assert caught.value.reason is Reason.ARTIFACT_INVALID
    return str(caught.value)


def two_files(target: tarfile.TarFile) -> None:
    add(target, "./red/", b"", type=tarfile.DIRTYPE)
    add(target, "./red/adapter_config.json", b"{}")
    add(target, "red/" + "long-" * 40 + "name", CONTENT)
    add(target, "red/block", bytes(512))
    add(target, "red/empty", b"")


class TestArchive:
    @pytest.mark.parametrize("size", [1, 511, 4096, 1 << 20])
    @pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    @pytest.mark.parametrize(
        "pack", [bytes, gzip.compress, lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:])]
    )
    def test_plain_files_come_whole(self, size: int, form: int, pack: Callable[[bytes], bytes]) -> None:
        data = packed(two_files, form)
        assert read(pack(data), size=size) == {
            "red/adapter_config.json": b"{}",
            "red/" + "long-" * 40 + "name": CONTENT,
            "red/block": bytes(512),
            "red/empty": b"",
        }

    def test_what_is_not_read_is_passed_over(self) -> None:
        stream = io.BytesIO(gzip.compress(packed(two_files)))
        assert len([one.path for one in entries(lambda: stream.read(100), where="it")]) == 4

    @pytest.mark.parametrize(
        ("name", "fields", "words"),
        [
            ("/etc/passwd", {}, "leads out"),
            ("a/../../b", {}, "leads out"),
            ("..", {}, "leads out"),
            ("a", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "link"),
            ("a", {"type": tarfile.LNKTYPE, "linkname": "b"}, "link"),
            ("a", {"type": tarfile.CHRTYPE}, "link, a device"),
            ("a", {"type": tarfile.FIFOTYPE}, "link, a device"),
            ("a", {"pax_headers": {"GNU.sparse.size": "99999999999", "GNU.sparse.map": "0,1"}}, "sparse"),
            ("a", {"pax_headers": {"size": "-1024"}}, "it"),
            ("a", {"pax_headers": {"comment": "x" * MAX_HEADER_BYTES}}, "headers of more than"),
        ],
    )
    def test_nothing_but_plain_files(self, name: str, fields: dict[str, object], words: str) -> None:
        data = b"" if fields.get("type") else b"x"
        assert words in refusal(packed(lambda target: add(target, name, data, **fields)))

    def test_a_bomb_does_not_go_off(self) -> None:
        inflate = zlib.compressobj(wbits=31)
        claimed = tarfile.TarInfo("a")
        claimed.size = 1 << 36
        bomb = inflate.compress(claimed.tobuf()) + b"".join(inflate.compress(bytes(1 << 20)) for _ in range(30))
        assert "when it is unpacked" in refusal(bomb + inflate.flush(), max_bytes=1 << 20)

    def test_too_many_entries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive, "MAX_ENTRIES", 3)
        assert "more than 3 entries" in refusal(packed(two_files))

    def test_a_chain_of_headers_ends(self) -> None:
        one = packed(lambda target: add(target, "a", pax_headers={"comment": "x"}))[:1024]
        assert "it" in refusal(one * 2000 + packed(two_files))

    @pytest.mark.parametrize("keep", [1, 300, 512, 700, 5000])
    def test_what_is_cut_off(self, keep: int) -> None:
        assert refusal(gzip.compress(packed(two_files))[:keep])

    def test_no_archive_at_all(self) -> None:
        for data in (b"", b"hello", b"PK\x03\x04" + bytes(1000), b"\x1f\x8b" + bytes(100), gzip.compress(b"hello")):
            assert refusal(data)


def layer(digit: str, **fields: object) -> dict[str, object]:
    return {
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": "sha256:" + digit * 64,
        "size": 5,
        **fields,
    }


def titled(digit: str, title: str, **more: str) -> dict[str, object]:
    return layer(digit, annotations={"org.opencontainers.image.title": title, **more})


def manifest(*layers: dict[str, object]) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": {"extra": 1}, "layers": layers}).encode()


class TestManifest:
    @pytest.mark.parametrize("folder", ["", "./", "red/"])
    def test_titled_layers_are_files(self, folder: str) -> None:
        names = ("adapter_config.json", "adapter_model.safetensors", "README.md")
        body = manifest(*(titled(digit, folder + name) for digit, name in zip("123", names, strict=True)))
        held = read_manifest(body, where="it")
        assert isinstance(held, Files)
        assert {name: one.digest[7] for name, one in held.layers.items()} == dict(zip(names[:2], "12", strict=True))

    def test_the_config_that_lies_highest_counts(self) -> None:
        paths = ("red/adapter_config.json", "red/checkpoint-10/adapter_config.json", "red/checkpoint-10/tokenizer.json")
        held = read_manifest(manifest(*(titled(str(number), path) for number, path in enumerate(paths))), where="it")
        assert isinstance(held, Files)
        assert {name: one.digest[7] for name, one in held.layers.items()} == {"adapter_config.json": "0"}

    @pytest.mark.parametrize(
        "one",
        [
            layer("1"),
            layer("1", mediaType="application/vnd.docker.image.rootfs.diff.tar.gzip"),
            titled("1", "red", **{"io.deis.oras.content.unpack": "true"}),
            {**titled("1", "red.tar.gz"), "mediaType": "application/gzip"},
        ],
    )
    def test_one_archive(self, one: dict[str, object]) -> None:
        held = read_manifest(manifest(one, titled("2", "README.md")), where="it")
        assert isinstance(held, Archive)
        assert held.layer.digest == "sha256:" + "1" * 64

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"no json", "not valid"),
            (b"[]", "not valid"),
            (manifest(), "no layers"),
            (manifest(layer("1"), layer("2")), "has 2 archives"),
            (manifest(titled("1", "model.gguf")), "its layers are model.gguf"),
            (manifest(layer("1", mediaType="a/b+zstd")), "its layers are a/b+zstd"),
            (manifest(layer("g")), "digest"),
            (manifest(layer("1", size=-1)), "size"),
            (manifest(titled("1", "a/adapter_config.json"), titled("2", "b/adapter_config.json")), "more than one"),
            (json.dumps({"manifests": [layer("1"), layer("2")]}).encode(), "index of 2 artifacts"),
        ],
    )
    def test_what_holds_no_adapter(self, body: bytes, words: str) -> None:
        with pytest.raises(AdapterError, match=re.escape(words)) as caught:
            read_manifest(body, where="it")
        assert caught.value.reason is Reason.ARTIFACT_INVALID

    def test_an_index_of_one_artifact_beside_its_attestation(self) -> None:
        attestation = layer("2", annotations={"vnd.docker.reference.type": "attestation-manifest"})
        held = read_manifest(json.dumps({"manifests": [layer("1"), attestation]}).encode(), where="it")
        assert held == Elsewhere("sha256:" + "1" * 64)


def secret(folder: Path, **auths: dict[str, str]) -> MountedSecret:
    folder.mkdir(exist_ok=True)
    (folder / ".dockerconfigjson").write_text(json.dumps({"auths": auths}))
    return MountedSecret(folder, "regcred")


def auth(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:p:w".encode()).decode()}


class TestLogin:
    @pytest.mark.parametrize(
        ("host", "repo", "user"),
        [
            ("registry.example", "team/red", "team"),
            ("registry.example", "teams/red", "host"),
            ("other.example:5000", "x", "port"),
            ("eu.glob.example", "x", "glob"),
            ("registry-1.docker.io", "x/y", "hub"),
        ],
    )
    def test_the_entry_that_fits_best(self, tmp_path: Path, host: str, repo: str, user: str) -> None:
        keys = {
            "https://registry.example/v2/": "host", "registry.example/team": "team", "other.example:5000": "port",
            "*.glob.example": "glob", "https://index.docker.io/v1/": "hub",
        }  # fmt: skip
        mounted = secret(tmp_path, **{key: auth(value) for key, value in keys.items()})
        assert login_of(mounted, host, repo, source="s") == Login(user, "p:w")

    @pytest.mark.parametrize("host", ["other.example", "a.b.glob.example", "glob.example", "xregistry.example"])
    def test_no_entry_fits(self, tmp_path: Path, host: str) -> None:
        mounted = secret(tmp_path, **{"registry.example": auth("a"), "*.glob.example": auth("b")})
        with pytest.raises(AdapterError, match="Secret regcred of source s has no username"):
            login_of(mounted, host, "team/red", source="s")

    def test_plain_keys_and_a_ca_alone(self, tmp_path: Path) -> None:
        (tmp_path / "ca.crt").write_text("PEM")
        mounted = MountedSecret(tmp_path, "ca")
        assert login_of(mounted, "h", "r", source="s") is None
        (tmp_path / "username").write_text("me\n")
        (tmp_path / "password").write_text("pass\n")
        assert login_of(mounted, "h", "r", source="s") == Login("me", "pass")
        assert "pass" not in repr(Login("me", "pass"))

    @pytest.mark.parametrize("entry", [{"auth": "%%%"}, {"auth": "/w=="}, {"identitytoken": "the-token"}])
    def test_what_is_not_read_is_named_and_not_shown(self, tmp_path: Path, entry: dict[str, str]) -> None:
        with pytest.raises(AdapterError, match="source s") as caught:
            login_of(secret(tmp_path, h=entry), "h", "r", source="s")
        assert caught.value.reason is Reason.UNAUTHORIZED
        assert not any(value in str(caught.value) for value in entry.values())

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            (['Bearer realm="https://auth/token",service="reg",scope="a:b:c"'], Challenge("https://auth/token", "reg")),
            (["Basic realm=x", 'Bearer realm="https://auth/token"'], Challenge("https://auth/token")),
            (["Basic realm=x"], Challenge()),
            (['Bearer realm="file:///etc/passwd"'], None),
            (["Negotiate"], None),
            ([], None),
        ],
    )
    def test_challenges(self, headers: list[str], expected: Challenge | None) -> None:
        assert read_challenge(headers) == expected
