"""A pod whose base declares a volume, a bucket and a hub, with real servers behind them and a token on its admin port."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.admin import Admin
from support.pod import ServedPod, serve
from support.servers import ACCESS_KEY, SECRET_KEY, ServedHub, ServedS3, serve_hub, serve_s3
from support.tiny_llama import make_adapter, vary_adapter

ADMIN_TOKEN = "admin-token-of-the-tests"
HUB_TOKEN = "hub-token-of-the-tests"


@dataclass
class DeclaredPod:
    """`volume`, `bucket` and `repos` are the folders behind the sources `volume`, `bucket` and `hub` (organisation acme)."""

    pod: ServedPod
    admin: Admin
    original: Path
    """An adapter that fits the base."""
    volume: Path
    bucket: Path
    repos: Path
    hub: ServedHub
    s3: ServedS3
    credentials: Path
    _num_made: int = 0

    def adapter(self, parent: Path, name: str) -> Path:
        """Write an adapter that answers unlike all others."""
        self._num_made += 1
        return vary_adapter(self.original, parent / name, seed=1000 + self._num_made)


@contextmanager
def serve_declared(base: Path, root: Path, *options: str, forked: bool = True) -> Iterator[DeclaredPod]:
    """Serve a base with three declared sources below `root`."""
    volumes, credentials = root / "volumes", root / "credentials"
    volume, bucket, repos = volumes / "volume" / "adapters", root / "s3" / "models" / "team", root / "hub"
    for folder in (volume, bucket, repos):
        folder.mkdir(parents=True)
    secrets = {
        "hub": {"token": HUB_TOKEN},
        "bucket": {"accessKeyId": ACCESS_KEY, "secretAccessKey": SECRET_KEY},
        "locked": {"accessKeyId": ACCESS_KEY, "secretAccessKey": "not-the-key"},
    }
    for source, keys in secrets.items():
        (credentials / source).mkdir(parents=True)
        for key, value in keys.items():
            (credentials / source / key).write_text(value)
    original = root / "original"
    make_adapter(base, original, rank=4, seed=1)
    with serve_hub(repos, token=HUB_TOKEN) as hub, serve_s3(root / "s3") as s3:
        secret = {"credentialsSecretRef": {"name": "mounted"}}
        sources = [
            {"name": "volume", "volume": {"claimName": "claim", "path": "adapters"}},
            {"name": "bucket", "s3": {"bucket": "models", "prefix": "team/", "endpoint": s3.url, **secret}},
            {"name": "locked", "s3": {"bucket": "models", "prefix": "team/", "endpoint": s3.url, **secret}},
            {"name": "hub", "huggingFace": {"endpoint": hub.url, "repos": ["acme/*"], **secret}},
        ]
        given = [
            f"--adapter-sources={json.dumps(sources)}",
            f"--volumes-dir={volumes}",
            f"--credentials-dir={credentials}",
            f"--admin-token-sha256={hashlib.sha256(ADMIN_TOKEN.encode()).hexdigest()}",
            "--admin-host=127.0.0.1",
            "--served-name=tiny",
            "--max-rank=16",
        ]
        with serve(base, *given, *options, forked=forked) as pod:
            admin = Admin(pod.admin_url, ADMIN_TOKEN)
            with admin.http:
                yield DeclaredPod(pod, admin, original, volume, bucket, repos, hub, s3, credentials)
