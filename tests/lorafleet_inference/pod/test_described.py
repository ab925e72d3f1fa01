"""As in `server/`, of a pod with a model and adapters; only with `make strangers`."""

import pytest
from support.pod import ServedPod
from support.strangers import EXAMPLES, ask


@pytest.mark.skipif(not EXAMPLES, reason="make strangers asks for it")
def test_whatever_is_asked_is_answered_as_the_document_says(pod: ServedPod) -> None:
    done = ask(pod.url, ("tiny", "red", "blue"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert pod.get("/health").json()["status"] == "ok"
