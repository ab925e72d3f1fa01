"""Finalizers of adapters: set before any pod is told of one, taken away when none has it any more."""

from collections.abc import Sequence

from lorafleet_contract.names import FINALIZER
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator.act.one_pass import Pass, together
from lorafleet_operator.act.tools import Tools
from lorafleet_operator.decide.first_catalogue import LOOK_SECONDS
from lorafleet_operator.decide.intent import Intent
from lorafleet_operator.decide.names import may_go_unread
from lorafleet_operator.decide.plan import Plan, released
from lorafleet_operator.decide.views import BrokenResource, ObservedPod


async def hold(tools: Tools, it: Pass, plan: Plan) -> frozenset[str]:
    """Finalizers first: what a pod is told, somebody has to take back. Returns the names that have none."""
    unheld: set[str] = set()

    async def hold_one(intent: Intent) -> None:
        unheld.add(intent.name)
        await tools.writer.hold(intent.adapter.metadata)
        unheld.discard(intent.name)

    await it.attempt(
        together(
            hold_one(intent)
            for intent in plan.intents
            if intent.artifacts and FINALIZER not in intent.adapter.metadata.finalizers
        )
    )
    return frozenset(unheld)


async def release(
    tools: Tools, it: Pass, plan: Plan, pods: Sequence[ObservedPod], base: BaseModelResource | None
) -> None:
    """Let go of deleted adapters that no pod has any more."""
    # what is on its way to a pod may be what is to be let go; an answer that brings no news wakes nobody
    is_writing = tools.executor.is_writing(it.snapshot.pods)
    is_hidden = base is not None and it.snapshot.are_pods_hidden
    is_unseen = is_hidden or it.snapshot.unread_base is not None
    is_sure = not is_unseen and not is_writing and tools.watches.are_sure(it.snapshot.pods)
    if not is_sure and not is_unseen and any(intent.is_deleted for intent in plan.intents):
        it.look_again(LOOK_SECONDS)
    await it.attempt(
        together(
            tools.writer.release(intent.adapter.metadata)
            for intent in released(plan, pods, base, it.snapshot.now, is_sure=is_sure)
            if FINALIZER in intent.adapter.metadata.finalizers
        )
    )


async def tell_broken(tools: Tools, it: Pass, broken: BrokenResource) -> None:
    """Say of a resource that cannot be read that it cannot; let a deleted one go when no pod can have it any more."""
    if broken.meta.deletion_timestamp is None:
        await tools.writer.broken(broken, Reason.INVALID_SPEC)
    elif FINALIZER in broken.meta.finalizers:
        # what pods know of it has no adapter any more, and leaves them like that
        if may_go_unread(broken, it.snapshot.base, it.snapshot.claims, it.snapshot.now):
            await tools.writer.release(broken.meta)
        else:
            it.look_again(LOOK_SECONDS)
