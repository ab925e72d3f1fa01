"""What each reason means and what to do about it: the text of docs/reference/reasons.md and of whoever explains a status."""

from dataclasses import dataclass
from typing import Final

from lorafleet_contract.reasons import Reason


@dataclass(frozen=True, slots=True)
class About:
    """A reason explained."""

    meaning: str
    remedy: str = ""
    """What to do; empty where nothing has to be done, or where the check that found it says so."""


REFUSED: Final = {
    Reason.ARTIFACT_NOT_FOUND: About(
        "There is no such folder, prefix, repository, revision, or no `adapter_config.json` in it.",
        "Look at path or repo and revision; a hub also answers so for what the token may not see.",
    ),
    Reason.ARTIFACT_INVALID: About(
        "The files are corrupt, truncated or too large, or contradict each other: a tensor is missing or not of the rank "
        "that the config says, or has a value that is not finite.",
        "Upload it again, or train it again if values are not finite; "
        "`lorafleet-inference validate FOLDER --model BASE --weights` says the same of your copy.",
    ),
    Reason.UNSAFE_FORMAT: About(
        "The weights are there only as a pickle (`adapter_model.bin`), which could run code. Nobody opens it.",
        "Save with `safe_serialization=True`, the default of PEFT.",
    ),
    Reason.UNSUPPORTED_ADAPTER: About(
        "A PEFT option, or a kind of tensor, that is not computed; the message names it.",
        "[adapter-support.md](adapter-support.md) has what is.",
    ),
    Reason.BASE_MODEL_MISMATCH: About(
        "A module or a shape is not the base's: it was trained on another model.", "Point it to its own base."
    ),
    Reason.RANK_TOO_HIGH: About(
        "Its rank is above the base's `lora.maxRank` (`--max-rank`).", "Raise it on the base, or train smaller."
    ),
    Reason.DIGEST_MISMATCH: About(
        "The content is not what was pinned: by `digest` in the spec, or when the source was resolved.",
        "Somebody changed it in place. Pin the new digest, or put the old content back.",
    ),
    Reason.SOURCE_NOT_ALLOWED: About(
        "The base declares no such source, or the place lies outside of it (repository list, a link that leads out).",
        "Declare it in `adapterSources`, or move the adapter.",
    ),
    Reason.UNAUTHORIZED: About(
        "The source refused the credentials, or has none. For the admin API itself: no token, or a wrong one.",
        "Look at the Secret that `credentialsSecretRef` names. It is read anew at each attempt.",
    ),
    Reason.SOURCE_UNAVAILABLE: About(
        "The source did not answer, answered 5xx or 429, or broke off.", "Nothing, unless it lasts."
    ),
    Reason.DISK_FULL: About(
        "The node cache is full of adapters in use, or the disk is.",
        "Raise `lora.diskCache` (`--disk-cache`) or the volume behind it.",
    ),
    Reason.OUT_OF_MEMORY: About(
        "No device memory: pinned adapters hold it, or the allocation failed.",
        "Pin less, or raise `adapterMemory` or `maxResidentAdapters`; `lorafleet_rank_pages_used`.",
    ),
    Reason.LOAD_FAILED: About(
        "Loading failed in a way that nobody foresaw; the pod's log has the trace.", "Report it."
    ),
}
"""An adapter that is not accepted, or cannot be loaded."""

STANDING: Final = {
    Reason.PENDING: About("Nobody has looked at it yet. From the admin API: the base model is still being loaded."),
    Reason.RESOLVING: About("A pod is pinning its source to content."),
    Reason.ACCEPTED: About("Base, name and source are in order."),
    Reason.LOADING: About("Pods are loading the revision that is wanted."),
    Reason.PROGRESS_DEADLINE_EXCEEDED: About(
        "A revision does not become the stable one, and no further pod has loaded it for "
        "`rollout.progressDeadlineSeconds`; the message names pods and what they say. What served before goes on serving. "
        "By steps: a step was not done for so long after its own time, and `onFailure` was followed."
    ),
    Reason.CANARY_STEP: About("The new revision gets a part of the requests, and is judged by what comes of them."),
    Reason.CANARY_PAUSED: About(
        "A rollout by steps waits for a person, with the weight that it has.",
        "Annotate `lorafleet.io/promote=REVISION:INDEX` to go on, or `lorafleet.io/abort=REVISION` to give it up.",
    ),
    Reason.ANALYSIS_FAILED: About(
        "The new revision was judged bad by what gateways counted: `status.rollout.evidence`. With `onFailure: Rollback` it is "
        "given up; the stable one answers all requests.",
        "Train another one. To try the same once more, annotate `lorafleet.io/retry` with a new value.",
    ),
    Reason.ABORTED: About(
        "A person gave the rollout of the revision up by the annotation `lorafleet.io/abort`.",
        "Put another source into spec; or take the annotation away and annotate `lorafleet.io/retry` with a new value.",
    ),
    Reason.VERIFYING: About(
        "A pod that has loaded the new revision is asked the questions of `spec.verify`; no request reaches it yet."
    ),
    Reason.VERIFY_UNAVAILABLE: About(
        "The questions of `spec.verify` could not be asked; the message says why. What served before goes on serving, and it is tried "
        "again and again.",
        "Look at the pod that the message names. One whose version has no `/admin/v1/ask` has to be replaced, or `spec.verify` taken away.",
    ),
    Reason.VERIFY_FAILED: About(
        "The new revision does not answer a question of `spec.verify` as it must; the message names the check and shows the answer. "
        "No request has reached it; what served before goes on serving.",
        "Train another one, or mend the check. To ask the same once more, annotate `lorafleet.io/retry` with a new value.",
    ),
    Reason.SERVING: About("The wanted revision is answered."),
    Reason.RESIDENT: About("It is in device memory wherever it was placed."),
    Reason.DRAINING: About("It is being unloaded and waits for requests that run."),
    Reason.SUSPENDED: About("`suspend` is set."),
    Reason.BASE_NOT_FOUND: About("`baseModelRef` names nothing."),
    Reason.BASE_NOT_ALLOWED: About("The base's `allowedNamespaces` does not have this namespace."),
    Reason.GUEST_NOT_ALLOWED: About(
        "The base's `lora.guests` does not let this namespace pin, have this priority, or use this served name. What "
        "serves goes on without pin and priority; under a name that is not allowed nothing serves."
    ),
    Reason.NAME_CONFLICT: About(
        "The served name belongs to an older adapter or base, or is reserved for the namespace in which it served last; "
        "on a pod: it is the base model's own name."
    ),
    Reason.NO_READY_PODS: About("No ready pod of the base answers."),
    Reason.INSUFFICIENT_SLOTS: About("It does not fit beside the others; the message says what is missing."),
}
"""Where an adapter stands in the cluster."""

BASE: Final = {
    Reason.PODS_READY: About("As many pods as wanted are ready."),
    Reason.MINIMUM_AVAILABLE: About("At least one pod is ready."),
    Reason.ROLLING_OUT: About("Pods are being started or replaced; the message names one that is in the way."),
    Reason.INVALID_SPEC: About("The spec cannot be honoured; the message names the field."),
    Reason.APPLY_FAILED: About("The API server did not take an object of it; the message is the API server's."),
    Reason.APPLIED: About("Its InferencePool, or its InferenceModelRewrite, is as its spec says."),
    Reason.API_NOT_FOUND: About(
        "The cluster does not serve the kind of an object that its spec asks for: an InferencePool, or for several hosts a "
        "LeaderWorkerSet; looked at again with each resync."
    ),
    Reason.FORBIDDEN: About(
        "The operator may not write an object that its spec asks for; the message names the value of the chart."
    ),
}
"""A base model."""

AUTOSCALING: Final = {
    Reason.INITIAL_REPLICAS: About("As many pods as there were when `spec.autoscaling` was set, within its bounds."),
    Reason.LOAD_ABOVE_TARGET: About("Pods have more sequences, running and waiting, than `targetSequences`."),
    Reason.LOAD_BELOW_TARGET: About("Fewer pods have been enough for `scaleDownAfterSeconds`."),
    Reason.SCALED_TO_ZERO: About(
        "No pod runs, because nothing was asked for `scaleToZero.idleSeconds`. A request starts one and is held by the gateway until "
        "it is ready. Also of Ready and Available, of the base and of its adapters."
    ),
    Reason.WOKEN: About("Requests are held, or an adapter needs a pod to be resolved or loaded."),
    Reason.GATEWAYS_SILENT: About(
        "A gateway does not say what it holds, so that the last pod stays; the message says which and why.",
        "Let the operator reach the gateways' port 8002, and give it `--gateway-selector`.",
    ),
    Reason.OUT_OF_BOUNDS: About("`minReplicas` or `maxReplicas` was changed, and the number follows."),
    Reason.TOO_FEW_REPLICAS: About(
        "The load asks for more pods than `maxReplicas`: requests wait in the pods' queues.",
        "Raise `maxReplicas`, or `targetSequences` where a pod can have more.",
    ),
}
"""How many pods a base model with `spec.autoscaling` should have: `status.autoscaling`, the condition ScalingLimited, and Events."""

ADMIN: Final = {
    Reason.STALE_FENCE: About("The write is older than one that the pod has accepted: another operator leads."),
    Reason.NOT_OWNED: About("The name is the operator's and not to be changed by hand, or the other way round."),
    Reason.NOT_FOUND: About("No such adapter, path or method."),
    Reason.BAD_REQUEST: About("The body or a parameter is wrong; the message names the field."),
}
"""Errors of the admin API, beside those above."""
