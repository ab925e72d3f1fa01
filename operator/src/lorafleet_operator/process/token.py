"""`lorafleet-operator token NAMESPACE/NAME`: the admin token of a base model, for people."""

from lorafleet_common.kube.client import connect
from lorafleet_common.kube.errors import KubeNotFound
from lorafleet_common.paths import collection
from lorafleet_contract.names import BASE_MODEL_PLURAL, GROUP, VERSION
from lorafleet_operator.cluster.keys import admin_key
from lorafleet_operator.decide.objects import admin_token
from lorafleet_operator.errors import OperatorError


async def token_of(base: str, *, namespace: str, key_secret: str) -> str:
    """Return the admin token of a base `NAMESPACE/NAME`.

    Raises:
        OperatorError: there is no such base, or the API server does not show it or the key.
        KubeError: the API server did not answer.
        ConfigError: the Secret holds no key.
    """
    home, _, name = base.partition("/")
    api = await connect()
    try:
        bases = await api.list(collection(f"{GROUP}/{VERSION}", BASE_MODEL_PLURAL, home))
        uid = next((item["metadata"]["uid"] for item in bases.items if item["metadata"]["name"] == name), None)
        if uid is None:
            raise OperatorError(f"there is no BaseModelDeployment {base}")
        return admin_token(await admin_key(api, namespace=namespace, name=key_secret, may_create=False), uid)
    except KubeNotFound as error:
        raise OperatorError(
            f"Secret {namespace}/{key_secret} or the resource definitions are missing: {error}"
        ) from error
    finally:
        await api.close()
