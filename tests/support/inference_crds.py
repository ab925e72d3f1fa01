"""The CRDs of the Gateway API Inference Extension, as its Go module has them; nothing of them is kept here."""

import json
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from localcluster.gobuild import find_go, go_problem

MODULE, VERSION = "sigs.k8s.io/gateway-api-inference-extension", "v1.3.0"
"""The first versions have no InferenceModelRewrite."""
CONTENT = "h1:Ng2Qs1Oum4WycuWyi3rOkAC7pZ2aDqgN2ku6Lr/mryQ="
"""Hash of the module, as go.sum would have it."""
POOLS = "inferencepools.inference.networking.k8s.io"
REWRITES = "inferencemodelrewrites.inference.networking.x-k8s.io"


@cache
def crd(name: str) -> str:
    """Return the manifest of a CRD by its name; 9 MB are downloaded the first time."""
    go = find_go()
    assert go is not None, go_problem()
    with tempfile.TemporaryDirectory() as folder:  # in no module: what is asked for is all that is fetched
        done = subprocess.run(
            [go, "mod", "download", "-json", f"{MODULE}@{VERSION}"],
            cwd=folder,
            env={**os.environ, "GOTOOLCHAIN": "auto", "GOWORK": "off", "GOFLAGS": ""},
            check=False,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["Sum"] == CONTENT
    plural, _, group = name.partition(".")
    return (Path(found["Dir"]) / "config" / "crd" / "bases" / f"{group}_{plural}.yaml").read_text()
