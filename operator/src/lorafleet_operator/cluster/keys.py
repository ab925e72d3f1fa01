"""The operator's one secret: the key from which the admin tokens of all bases are made."""

import base64
import binascii
import secrets
from typing import Final

from lorafleet_common.errors import ConfigError
from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeConflict, KubeNotFound
from lorafleet_common.paths import Json, collection
from lorafleet_contract.names import MANAGED_BY

KEY_FIELD: Final = "key"
KEY_BYTES: Final = 32


async def admin_key(api: KubeApi, *, namespace: str, name: str, may_create: bool = True) -> bytes:
    """Return the key, made and stored if there is none yet and `may_create`.

    Raises:
        KubeError: the Secret can be neither read nor made.
        ConfigError: the Secret is there and holds no key.
    """
    path = collection("v1", "secrets", namespace)
    try:
        found = await api.get(f"{path}/{name}")
    except KubeNotFound:
        if not may_create:
            raise
        try:
            found = await api.create(path, _secret(namespace, name))
        except KubeConflict:
            found = await api.get(f"{path}/{name}")
    try:
        key = base64.b64decode((found.get("data") or {})[KEY_FIELD], validate=True)
    except (KeyError, binascii.Error):
        raise ConfigError("--key-secret", f"Secret {namespace}/{name} has no {KEY_FIELD}") from None
    if len(key) < KEY_BYTES:
        raise ConfigError(
            "--key-secret", f"the {KEY_FIELD} in Secret {namespace}/{name} is shorter than {KEY_BYTES} bytes"
        )
    return key


def _secret(namespace: str, name: str) -> Json:
    labels = {"app.kubernetes.io/part-of": "lorafleet", "app.kubernetes.io/managed-by": MANAGED_BY}
    key = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "type": "Opaque",
        "data": {KEY_FIELD: key},
    }
