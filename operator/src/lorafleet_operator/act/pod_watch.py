"""What each pod last said of itself. One long poll a pod is the only sensor; the answer to a write counts as well.

Passes read what is kept here and ask pods nothing, so that a pod that hangs delays none of them.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from operator import is_not
from typing import Any, Final

from lorafleet_common.clock import monotonic
from lorafleet_common.supervise import end, supervise
from lorafleet_contract.admin import AdapterState, ObservedAdapter, PodState, Residency, StartProgress
from lorafleet_contract.reasons import Reason
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.decide.paging import all_pages
from lorafleet_operator.decide.pod_words import LOADS, stage_by
from lorafleet_operator.decide.start import is_worth_telling
from lorafleet_operator.decide.views import BaseKey, ObservedPod, Pod
from lorafleet_operator.errors import AdminError, PodRefused

logger = logging.getLogger(__name__)
FIRST_RETRY_SECONDS: Final = 0.2
MAX_RETRY_SECONDS: Final = 1.0
"""A pod that is not seen is looked at again within a second."""
NEWS_SECONDS: Final = 0.05
"""After a poll that brought something: what a pod changes in a burst is asked for once."""
IDLE_SECONDS: Final = 0.2
"""After a poll that brought nothing: a pod that does not wait must not be asked without a pause."""
WHOLE_SECONDS: Final = 60.0
"""How old counters may be: polls within this time are answered with what else has changed, if anything has."""
FIRST_LOOK_SECONDS: Final = 1.0
"""How long a pass waits for pods that have not been asked yet."""


@dataclass(frozen=True, slots=True)
class _Address:
    base: BaseKey
    ip: str
    token: str


@dataclass(slots=True)
class _Watched:
    """One pod."""

    name: str
    address: _Address
    is_ready: bool
    """As the API server has it."""
    task: asyncio.Task[None] | None = None
    state: PodState | None = None
    """None: not seen."""
    counted: PodState | None = None
    """The last document that told all counters anew."""
    observed: ObservedPod | None = None
    """`state` as passes last saw it."""
    is_sure: bool = False
    """Whether it is known what `state` is; not while an answer is missing."""
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with the first answer or failure."""
    whole_at: float = 0.0
    """On the loop's clock, when all of the document was asked for last."""
    missed_since: float | None = None
    """On the loop's clock, since when it is not seen."""
    doubts: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to have it asked at once."""
    start: StartProgress | None = None
    """How far its start is, as its base says."""
    start_at: float = 0.0
    """On the loop's clock, when that was taken in."""
    is_loading: bool = False
    """Whether it says that its base is not there yet."""


class PodWatches:
    """The pods of all bases, as far as they are seen."""

    def __init__(
        self, client: AdminClient, wake: Callable[[BaseKey], None], *, whole_seconds: float = WHOLE_SECONDS
    ) -> None:
        self._client = client
        self._wake = wake
        self._whole_seconds = whole_seconds
        self._watched: dict[str, _Watched] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def sync(self, base: BaseKey, pods: Iterable[Pod], token: str) -> None:
        """Watch exactly these pods of a base."""
        wanted = {
            pod.uid: (pod, _Address(base, pod.ip, token)) for pod in pods if pod.ip is not None and not pod.is_leaving
        }
        for uid, watched in list(self._watched.items()):
            if watched.address.base == base and (uid not in wanted or wanted[uid][1] != watched.address):
                assert watched.task is not None
                watched.task.cancel()
                watched.was_asked.set()
                del self._watched[uid]
        for uid, (pod, address) in wanted.items():
            if uid not in self._watched:
                watched = self._watched[uid] = _Watched(pod.name, address, is_ready=pod.is_ready)
                watched.task = asyncio.create_task(self._supervised(watched))
            elif self._watched[uid].is_ready != pod.is_ready:  # the kubelet has noticed something: look as well
                self._watched[uid].is_ready = pod.is_ready
                self.doubt(uid)

    async def first_look(self, pods: Iterable[Pod]) -> None:
        """Wait until each of these pods was asked once, for a moment at most."""
        waiting = [asyncio.ensure_future(w.was_asked.wait()) for w in self._of(pods) if not w.was_asked.is_set()]
        if waiting:
            try:
                await asyncio.wait(waiting, timeout=FIRST_LOOK_SECONDS)
            finally:
                await end(waiting)

    def have_been_asked(self, pods: Iterable[Pod]) -> bool:
        """Whether each of these pods has answered or failed to answer since it is watched."""
        return all(watched.was_asked.is_set() for watched in self._of(pods))

    def are_sure(self, pods: Iterable[Pod]) -> bool:
        """Whether nothing can have happened on these pods that is not seen: no answer to a write is missing."""
        return all(watched.is_sure or watched.state is None for watched in self._of(pods))

    def observe(self, pods: Sequence[Pod]) -> tuple[ObservedPod, ...]:
        """Return every pod with what it last said; one that is not seen has no state."""
        return tuple(self._observed(pod) for pod in pods)

    def with_starts(self, pods: Iterable[Pod]) -> tuple[Pod, ...]:
        """Return pods; of those that are not ready yet, with what they say themselves as their stage."""
        return tuple(map(self._with_start, pods))

    def unseen_seconds(self, uid: str) -> float:
        """Return for how long a pod has not been seen; 0 for one that is."""
        watched = self._watched.get(uid)
        return 0.0 if watched is None or watched.missed_since is None else monotonic() - watched.missed_since

    def known(self, uid: str) -> PodState | None:
        """Return what a pod last said; None where it is not seen."""
        watched = self._watched.get(uid)
        return watched.state if watched is not None else None

    def heard(self, uid: str, state: PodState) -> None:
        """Take in a pod's answer to a write. It counts for the boot that is watched only: another one is asked anew."""
        watched = self._watched.get(uid)
        if watched is None:
            return
        if watched.state is None or watched.state.boot_id != state.boot_id:
            self.doubt(uid)
        else:
            self._take(watched, state)

    def doubt(self, uid: str) -> None:
        """Ask a pod at once what it has: it is slow to answer something else, or has not answered."""
        if (watched := self._watched.get(uid)) is not None:
            watched.is_sure = False
            watched.doubts.set()

    def doubt_address(self, base: BaseKey, ip: str) -> None:
        """As `doubt`, for the pod of a base at an address."""
        for uid, watched in self._watched.items():
            if (watched.address.base, watched.address.ip) == (base, ip):
                self.doubt(uid)

    async def close(self) -> None:
        """End all polls."""
        tasks = [watched.task for watched in self._watched.values() if watched.task is not None]
        self._watched.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _with_start(self, pod: Pod) -> Pod:
        watched = self._watched.get(pod.uid)
        if watched is None or pod.is_ready:
            return pod
        if watched.state is not None:
            return replace(pod, stage=stage_by(watched.state))
        if watched.start is not None:
            return replace(pod, stage=watched.start.words)
        return replace(pod, stage=LOADS) if watched.is_loading else pod

    def _of(self, pods: Iterable[Pod]) -> list[_Watched]:
        return [watched for pod in pods if (watched := self._watched.get(pod.uid)) is not None]

    def _observed(self, pod: Pod) -> ObservedPod:
        """Return a pod with what it last said; what was made of that is kept while neither changes."""
        watched = self._watched.get(pod.uid)
        if watched is None or pod.is_leaving:
            return ObservedPod(pod, None)
        known = watched.observed
        is_same = known is not None and known.state is watched.state and known.counted is watched.counted
        if known is None or not is_same or known.pod != pod:
            known = watched.observed = ObservedPod(pod, watched.state, known, counted=watched.counted)
        return known

    async def _supervised(self, watched: _Watched) -> None:
        await supervise(f"the watch of pod {watched.name}", lambda: self._follow(watched))

    async def _follow(self, watched: _Watched) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            known = watched.state if watched.is_sure else None
            is_whole = known is None or monotonic() - watched.whole_at >= self._whole_seconds
            try:
                state = await self._ask(watched, known, is_whole=is_whole)
            except AdminError as error:
                if known is not None:  # one missed answer is none: it is asked again before it counts as not seen
                    watched.is_sure = False
                    continue
                self._lost(watched, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, MAX_RETRY_SECONDS)
                continue
            if state is None:  # in doubt since
                continue
            delay = FIRST_RETRY_SECONDS
            is_news = self._take(watched, state, is_whole=is_whole)
            await asyncio.sleep(NEWS_SECONDS if is_news else IDLE_SECONDS)

    async def _ask(self, watched: _Watched, known: PodState | None, *, is_whole: bool) -> PodState | None:
        """Return what the pod says, once it is something else than `known`; None when it is to be asked at once."""
        address = watched.address
        watched.doubts.clear()
        if known is None:
            watched.whole_at = monotonic()
            return await self._client.state(address.ip, address.token)
        poll = asyncio.ensure_future(
            self._client.changed_state(address.ip, address.token, known, with_counters=is_whole)
        )
        doubt = asyncio.ensure_future(watched.doubts.wait())
        try:
            await asyncio.wait((poll, doubt), return_when=asyncio.FIRST_COMPLETED)
            if not poll.done():
                return None
            state = poll.result() or known
            if is_whole:
                watched.whole_at = monotonic()
            return state
        finally:
            for task in (poll, doubt):
                task.cancel()
            await asyncio.gather(poll, doubt, return_exceptions=True)

    def _take(self, watched: _Watched, state: PodState, *, is_whole: bool = False) -> bool:
        """Keep what a pod said, unless something newer is known; wake its base if it is news. Returns whether it is."""
        before = watched.state
        is_boot = before is not None and before.boot_id == state.boot_id
        if before is not None and is_boot and state.generation < before.generation:
            return False
        if before is None and watched.was_asked.is_set():
            logger.info("pod %s is seen again", watched.name)
        watched.state, watched.start, watched.is_loading = state, None, False
        if is_whole or not is_boot:
            watched.counted = state
        watched.missed_since = None
        watched.is_sure = not watched.doubts.is_set()
        watched.was_asked.set()
        if before is not None and is_boot and _is_judged_alike(before, state):
            return before.generation != state.generation
        self._wake(watched.address.base)
        return True

    def _lost(self, watched: _Watched, error: AdminError) -> None:
        watched.was_asked.set()
        if watched.missed_since is None:
            watched.missed_since = monotonic()
        if watched.state is None:
            logger.debug("pod %s does not say what it has: %s", watched.name, error)
            self._hear_start(watched, error)
            return
        logger.warning("pod %s does not say what it has: %s", watched.name, error)
        watched.state = None
        self._wake(watched.address.base)

    def _hear_start(self, watched: _Watched, error: AdminError) -> None:
        if not isinstance(error, PodRefused) or error.reason != Reason.PENDING:
            return
        is_new, watched.is_loading = not watched.is_loading, True
        start = error.start
        if start is not None and is_worth_telling(watched.start, start, monotonic() - watched.start_at):
            watched.start, watched.start_at, is_new = start, monotonic(), True
        if is_new:
            self._wake(watched.address.base)


def _is_judged_alike(one: PodState, other: PodState) -> bool:
    """Whether a pass comes to the same with either: it depends on no counters, and on no tier of what moves by itself."""
    if one is other:
        return True
    if _head(one) != _head(other) or len(one.adapters) != len(other.adapters):
        return False
    pairs = zip(one.adapters, other.adapters, strict=True)
    others = list(compress(pairs, map(is_not, one.adapters, other.adapters)))
    if any((a.name, a.revision) != (b.name, b.revision) for a, b in others):  # in another order, or others
        found = {(b.name, b.revision): b for _, b in others}
        if len(found) < len(others) or any((a.name, a.revision) not in found for a, _ in others):
            return False
        others = [(a, found[a.name, a.revision]) for a, _ in others]
    return all(_entry(a) == _entry(b) for a, b in others)


def _head(state: PodState) -> tuple[Any, ...]:
    return state.fence, state.draining, state.ready, all_pages(state.budgets)


def _entry(entry: ObservedAdapter) -> tuple[Any, ...]:
    is_still = entry.residency is Residency.ON_DEMAND and entry.state is AdapterState.READY
    return (
        (entry.name, entry.revision, entry.digest, entry.owner, entry.residency, entry.pinned, entry.stable),
        (entry.state, entry.reason, entry.message, entry.rank_pages, entry.memory_pages),
        None if is_still else entry.tier,
    )
