"""What a pass came to, for whoever runs the next one."""

from dataclasses import dataclass

from lorafleet_common.kube.errors import KubeError


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a pass."""

    done: bool = True
    """False: something was not taken; the pass is repeated with backoff."""
    look_again_seconds: float | None = None
    """When the next pass is due though nothing changes; None: not before something does."""
    failure: KubeError | None = None
    """Why it is not done, where the API server is the reason."""
