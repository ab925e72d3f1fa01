"""What pods are asked in a pass: what a source is, and whether a new revision answers as its owner expects."""

from collections.abc import Iterable, Sequence
from typing import Final

from lorafleet_contract.names import ANNOTATION_RETRY
from lorafleet_operator.act.one_pass import Pass
from lorafleet_operator.act.tools import Tools
from lorafleet_operator.act.verify import Questions
from lorafleet_operator.decide.plan import Plan, questions_of, verifications_of
from lorafleet_operator.decide.verify import VerifyKey
from lorafleet_operator.decide.views import ObservedPod

RESOLVE_PATIENCE_SECONDS: Final = 3.0
"""A pod that is not seen for longer has lost what it was asked to resolve: another one is asked."""


def resolve(tools: Tools, it: Pass, plan: Plan, pods: Sequence[ObservedPod], token: str) -> None:
    """Have sources resolved that a plan needs, and no others."""
    questions = questions_of(plan, pods)
    base, watches = it.snapshot.base, tools.watches
    assert base is not None
    patient = [
        pod for pod in pods if not pod.pod.is_leaving and watches.unseen_seconds(pod.uid) < RESOLVE_PATIENCE_SECONDS
    ]
    if questions and any(pod.state is None for pod in patient):
        it.look_again(RESOLVE_PATIENCE_SECONDS)
    boots = [("boot", pod.uid, pod.state.boot_id) for pod in pods if pod.state is not None]
    retry = base.metadata.annotations.get(ANNOTATION_RETRY, "")
    tools.resolver.want(
        it.key,
        {question: _ips(able) for question, able in questions.items()},
        token,
        alive=_ips(patient),
        occasions=[("generation", base.metadata.generation), ("retry", retry), *boots],
    )


def verify(tools: Tools, it: Pass, plan: Plan, pods: Sequence[ObservedPod], token: str) -> None:
    """Have revisions verified that a plan waits for, and no others."""
    wanted: dict[VerifyKey, Questions] = {}
    for key, (intent, able) in verifications_of(plan, pods).items():
        assert intent.adapter.spec.verify is not None
        addresses = {pod.pod.ip: pod.pod.name for pod in able if pod.pod.ip is not None}
        wanted[key] = Questions(intent.adapter.spec.verify, addresses)
    tools.verifier.want(it.key, wanted, token)


def _ips(pods: Iterable[ObservedPod]) -> list[str]:
    return [pod.pod.ip for pod in pods if pod.pod.ip is not None]
