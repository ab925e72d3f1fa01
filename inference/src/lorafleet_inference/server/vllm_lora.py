"""vLLM's two routes for adapters at run time, on the admin port: for scripts that have them already.

Bodies and texts are vLLM's. `lora_path` must lie in a declared source: a path of a mounted volume, `s3://BUCKET/PATH`,
`oci://HOST/REPO[:TAG|@DIGEST]`, or a hub repository.
"""

from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict
from starlette.responses import PlainTextResponse, Response

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.catalogue import NotOwned
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.server.http import error_body
from lorafleet_inference.server.pod import Pod


class LoadRequest(BaseModel):
    """Body of /v1/load_lora_adapter."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadRequest(BaseModel):
    """Body of /v1/unload_lora_adapter."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    lora_name: str = ""


def vllm_lora_router(pod: Pod) -> APIRouter:
    """Return the two routes."""
    router = APIRouter()

    @router.post("/v1/load_lora_adapter")
    async def load(body: Annotated[LoadRequest, Body()]) -> Response:
        name = body.lora_name
        if not name or not body.lora_path:
            return _refused(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if body.is_3d_lora_weight:
            return _refused(400, "'is_3d_lora_weight' is not supported.")
        try:
            if not body.load_inplace and _is_known(pod, name):
                return _refused(
                    400,
                    f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                    "'load_inplace' to True.",
                )
            await pod.manager.put_local(name, pod.manager.ref_of(body.lora_path), pinned=False)
        except (AdapterError, NotOwned) as error:
            is_missing = isinstance(error, AdapterError) and error.reason is Reason.ARTIFACT_NOT_FOUND
            return _refused(404 if is_missing else 400, f"Loading lora adapter '{name}' failed: {error}")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @router.post("/v1/unload_lora_adapter")
    async def unload(body: Annotated[UnloadRequest, Body()]) -> Response:
        name = body.lora_name
        if not name:
            return _refused(400, "'lora_name' needs to be provided to unload a LoRA adapter.")
        try:
            was_there = await pod.manager.remove_local(name, drain_seconds=pod.config.drain_timeout_seconds)
        except NotOwned as error:
            return _refused(400, str(error))
        if not was_there:
            return _refused(404, f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    return router


def _is_known(pod: Pod, name: str) -> bool:
    return any(one.name == name for one in pod.manager.shown.observed())


def _refused(status: int, message: str) -> Response:
    return Response(error_body(message, status=status, code=None), status, media_type="application/json")
