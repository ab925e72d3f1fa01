"""Reasons: stable CamelCase words in conditions, admin errors and adapter states. Listed for users in docs/reference/reasons.md."""

from enum import StrEnum


class Reason(StrEnum):
    """Why something is as it is."""

    # an adapter that cannot be taken as it is
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    ARTIFACT_INVALID = "ArtifactInvalid"
    """Corrupt, truncated, too large, or not an adapter."""
    UNSAFE_FORMAT = "UnsafeFormat"
    """Weights only in a pickle format."""
    UNAUTHORIZED = "Unauthorized"
    DIGEST_MISMATCH = "DigestMismatch"
    BASE_MODEL_MISMATCH = "BaseModelMismatch"
    """Module names or shapes do not fit the base."""
    RANK_TOO_HIGH = "RankTooHigh"
    UNSUPPORTED_ADAPTER = "UnsupportedAdapter"
    """A PEFT option that is not computed; the message names the field."""
    SOURCE_NOT_ALLOWED = "SourceNotAllowed"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    """The source did not answer."""
    OUT_OF_MEMORY = "OutOfMemory"
    DISK_FULL = "DiskFull"
    LOAD_FAILED = "LoadFailed"

    # where an adapter stands in the cluster
    PENDING = "Pending"
    BASE_NOT_FOUND = "BaseNotFound"
    BASE_NOT_ALLOWED = "BaseNotAllowed"
    GUEST_NOT_ALLOWED = "GuestNotAllowed"
    """The base does not let adapters of another namespace pin, outrank or use the name."""
    NAME_CONFLICT = "NameConflict"
    NO_READY_PODS = "NoReadyPods"
    INSUFFICIENT_SLOTS = "InsufficientSlots"
    RESOLVING = "Resolving"
    LOADING = "Loading"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    """As of a Deployment: a revision is not loaded, and there was no progress for too long."""
    CANARY_STEP = "CanaryStep"
    """A new revision gets a part of the requests."""
    CANARY_PAUSED = "CanaryPaused"
    """A rollout by steps waits for a person."""
    ANALYSIS_FAILED = "AnalysisFailed"
    ABORTED = "Aborted"
    """A person gave a rollout up."""
    VERIFYING = "Verifying"
    """A new revision is asked what its owner wants it to answer."""
    VERIFY_UNAVAILABLE = "VerifyUnavailable"
    """It could not be asked."""
    VERIFY_FAILED = "VerifyFailed"
    """It answers something else."""
    SERVING = "Serving"
    RESIDENT = "Resident"
    ACCEPTED = "Accepted"
    DRAINING = "Draining"
    SUSPENDED = "Suspended"

    # a base model
    ROLLING_OUT = "RollingOut"
    PODS_READY = "PodsReady"
    MINIMUM_AVAILABLE = "MinimumAvailable"
    INVALID_SPEC = "InvalidSpec"
    APPLY_FAILED = "ApplyFailed"
    APPLIED = "Applied"
    API_NOT_FOUND = "ApiNotFound"
    """The cluster does not serve the kind of an object that is asked for."""
    FORBIDDEN = "Forbidden"

    # how many pods autoscaling asks for
    INITIAL_REPLICAS = "InitialReplicas"
    LOAD_ABOVE_TARGET = "LoadAboveTarget"
    LOAD_BELOW_TARGET = "LoadBelowTarget"
    OUT_OF_BOUNDS = "OutOfBounds"
    SCALED_TO_ZERO = "ScaledToZero"
    WOKEN = "Woken"
    """A base without pods gets one."""
    GATEWAYS_SILENT = "GatewaysSilent"
    TOO_FEW_REPLICAS = "TooFewReplicas"
    """The load asks for more than the upper bound; as of a HorizontalPodAutoscaler."""

    # admin API
    STALE_FENCE = "StaleFence"
    NOT_FOUND = "NotFound"
    BAD_REQUEST = "BadRequest"
    NOT_OWNED = "NotOwned"


RETRYABLE: frozenset[Reason] = frozenset(
    {Reason.SOURCE_UNAVAILABLE, Reason.DISK_FULL, Reason.OUT_OF_MEMORY, Reason.LOAD_FAILED}
)
"""Reasons that may go away by trying again; the others stay until the artifact or the spec changes."""
