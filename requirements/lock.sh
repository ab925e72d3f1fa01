#!/bin/sh
# Remakes the locks after a change of dev.in or of a pyproject.toml. `--upgrade` takes newer versions.
set -eu
cd "$(dirname "$0")/.."
compile() {
    uv pip compile --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 \
        --no-emit-package lorafleet-contract --no-emit-package lorafleet-common --quiet "$@"
}
compile "$@" requirements/dev.in contract/pyproject.toml common/pyproject.toml operator/pyproject.toml gateway/pyproject.toml inference/pyproject.toml \
    --extra otel -o requirements/dev.txt
compile inference/pyproject.toml --extra otel -c requirements/dev.txt -o requirements/inference.txt
compile operator/pyproject.toml gateway/pyproject.toml --extra otel -c requirements/dev.txt -o requirements/operator.txt
compile requirements/clients.in -o requirements/clients.txt
