"""How requests reach the pods of a base beside lorafleet's own gateway."""

from typing import Annotated, Literal

from pydantic import Field

from lorafleet_contract.base import Observed


class EndpointPickerRef(Observed):
    """The Service of an endpoint picker, in the namespace of the base."""

    name: str
    port: Annotated[int, Field(ge=1, le=65535)] = 9002
    failure_mode: Literal["FailOpen", "FailClose"] = "FailClose"
    """What a gateway does with requests while the picker does not answer: any pod, or none."""


class InferencePoolSpec(Observed):
    """An InferencePool of the Gateway API Inference Extension that selects the pods of the base."""

    endpoint_picker_ref: EndpointPickerRef
    model_rewrite: Literal["Disabled", "Managed"] = "Disabled"
    """Managed: an InferenceModelRewrite gives the pickers of this pool the weights of rollouts by steps."""


class RoutingSpec(Observed):
    """Ways to the pods."""

    inference_pool: InferencePoolSpec | None = None
    """None: there is no InferencePool."""


class AppliedObject(Observed):
    """An object that the operator has made, and takes away when it is not wanted any more."""

    name: str
    uid: str
