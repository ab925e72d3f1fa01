"""A pod in memory that keeps the admin contract: no model, no weights, everything else as the operator sees it.

In tests it runs inside the test's event loop; `python3 -m support.fake_pod serve …` is one as a container of a cluster,
and understands those options of `lorafleet-inference serve` that concern it.

What a source holds follows from its path or repo, so that all pods agree without sharing anything: `missing…` is not
there, `flaky…` does not answer, `pickle…` is unsafe, `bad-load…` is resolved and then fails to load, `…-rN` has rank N;
everything else is an adapter of rank 8 whose content is its path. A `Library` changes that at run time.
"""

import argparse
import asyncio
import contextlib
import hashlib
import re
import signal
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from lorafleet_contract import admin
from lorafleet_contract.base import Wire
from lorafleet_contract.names import ADMIN_PORT, PUBLIC_PORT, revision_of
from lorafleet_contract.quantities import quantity_bytes
from lorafleet_contract.reasons import RETRYABLE, Reason
from lorafleet_contract.sources import AdapterFacts, ResolvedSource, SourceFile, SourceRef

RANK_PAGE = 8
REMEMBERED = 20
"""Generations whose state a pod remembers, so that it can tell what has changed since."""
RETRY_SECONDS = 0.5
"""After a failure that may pass a pod tries again by itself."""
Key = tuple[str, str]
"""Served name and revision."""


@dataclass
class Library:
    """What sources hold, where it is not what their paths say."""

    contents: dict[str, str] = field(default_factory=dict)
    """Path or repo -> content."""
    failures: dict[str, admin.AdminError] = field(default_factory=dict)
    """Path or repo -> what a resolution of it is answered."""
    load_failures: dict[str, Reason] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    """Content -> what it answers to everything; else it repeats the question."""

    def resolve(self, ref: SourceRef) -> ResolvedSource:
        """Pin a reference.

        Raises:
            Refused: it cannot be taken.
        """
        place = ref.path or ref.repo or ""
        if place in self.failures:
            raise Refused(503 if self.failures[place].retryable else 422, self.failures[place])
        for prefix, status, reason in (
            ("missing", 404, Reason.ARTIFACT_NOT_FOUND),
            ("flaky", 503, Reason.SOURCE_UNAVAILABLE),
            ("pickle", 422, Reason.UNSAFE_FORMAT),
        ):
            if place.startswith(prefix):
                raise Refused(
                    status, admin.AdminError(reason=reason, message=f"{place}: {reason}", retryable=status == 503)
                )
        content = self.contents.get(place, place)
        ranked = re.search(r"-r(\d+)$", content)
        sha = hashlib.sha256(content.encode()).hexdigest()
        rank = int(ranked[1]) if ranked else 8
        commit = hashlib.sha1(content.encode()).hexdigest() if ref.repo else None
        return ResolvedSource(
            ref=ref.model_copy(update={"revision": commit}),
            digest=f"sha256:{sha}",
            files=[SourceFile(path="adapter_model.safetensors", size_bytes=1000 * rank, sha256=sha)],
            facts=AdapterFacts(rank=rank, size_bytes=1000 * rank, target_modules=["q_proj", "v_proj"]),
        )

    def load_failure(self, ref: SourceRef) -> Reason | None:
        place = ref.path or ref.repo or ""
        return self.load_failures.get(place) or (Reason.BASE_MODEL_MISMATCH if place.startswith("bad-load") else None)


class Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, error: admin.AdminError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


@dataclass
class Entry:
    """One revision as the pod has it."""

    entry: admin.CatalogueEntry
    owner: admin.Owner = admin.Owner.OPERATOR
    state: admin.AdapterState = admin.AdapterState.PENDING
    reason: str = ""
    last_used: float | None = None
    num_tokens: int = 0

    def observed(self) -> admin.ObservedAdapter:
        entry, source = self.entry, self.entry.source
        is_resident = entry.residency is admin.Residency.RESIDENT and self.state is admin.AdapterState.READY
        return admin.ObservedAdapter(
            name=entry.name,
            revision=revision_of(source.digest),
            digest=source.digest,
            owner=self.owner,
            residency=entry.residency,
            pinned=entry.pinned,
            stable=entry.stable,
            state=self.state,
            tier=admin.Tier.DEVICE if is_resident else admin.Tier.DISK,
            reason=self.reason,
            message=f"it said {self.reason}" if self.reason else "",
            rank=source.facts.rank,
            rank_pages=-(-source.facts.rank // RANK_PAGE),
            size_bytes=source.facts.size_bytes,
            last_used=self.last_used,
            num_tokens=self.num_tokens,
        )


class FakePod:
    """One pod. What it was told in `writes`; what should never have happened in `faults`."""

    def __init__(
        self,
        library: Library | None = None,
        *,
        token: str = "",
        token_sha256: str | None = None,
        slots: int = 32,
        max_rank: int = 64,
        load_seconds: float = 0.0,
    ) -> None:
        self.library = library or Library()
        self.token_sha256 = token_sha256 or hashlib.sha256(token.encode()).hexdigest()
        self.slots, self.max_rank, self.load_seconds = slots, max_rank, load_seconds
        self.load_on_demand = True
        self.drain_seconds = 0.0
        """How long requests run on an adapter that is removed."""
        self.writes: list[admin.CatalogueWrite] = []
        self.refused: list[admin.CatalogueWrite] = []
        self.faults: list[str] = []
        self.num_resolved = 0
        self.asked: list[admin.AskRequest] = []
        self.ask_error: tuple[int, admin.AdminError] | None = None
        """What questions are answered."""
        self.ask_seconds = 0.0
        self.num_running = self.num_waiting = self.num_requests = 0
        """What it says of its load."""
        self.has_load = True
        """False: as a pod of an earlier version, which does not say."""
        self.num_load_asked = 0
        self.num_whole = 0
        """Answers to polls that brought the whole state."""
        self.num_differences = 0
        """Answers to polls and writes that brought what had changed."""
        self.tells_differences = True
        """Pods of version 0.1.0 answer whole, whatever is asked."""
        self.resolve_seconds = 0.0
        self.on_ready: Callable[[], None] | None = None
        """Called once a boot, when the first catalogue has settled: the readiness probe's part."""
        self._awake = asyncio.Event()
        self._awake.set()
        self._speaks = asyncio.Event()
        self._speaks.set()
        self._changed = asyncio.Event()
        self._runners: list[web.AppRunner] = []
        self._timers: set[asyncio.TimerHandle] = set()
        self.restart()

    def restart(self) -> None:
        """A new boot of the process: everything it knew is gone."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.boot_id = uuid.uuid4().hex
        self.generation = 1
        self.fence = self.catalogue_generation = 0
        self.entries: dict[tuple[str, str], Entry] = {}
        self.is_ready = self.is_draining = False
        self._said: dict[int, dict[Key, admin.ObservedAdapter]] = {}
        """What it said in each generation, without counters."""
        self.routed: dict[int, dict[Key, Any]] = {}
        """The same of what it publishes for gateways."""
        self._changed.set()

    def mute(self) -> None:
        """Say nothing of what it has, and do everything else."""
        self._speaks.clear()

    def speak(self) -> None:
        """Go on."""
        self._speaks.set()

    def hang(self) -> None:
        """Take connections and answer none."""
        self._awake.clear()

    def wake(self) -> None:
        """Go on."""
        self._awake.set()

    def add_local(self, name: str, path: str) -> None:
        """An adapter of `serve --adapter`."""
        source = self.library.resolve(SourceRef(name="local", path=path))
        entry = admin.CatalogueEntry(name=name, source=source)
        self.entries[name, revision_of(source.digest)] = Entry(entry, admin.Owner.LOCAL, admin.AdapterState.READY)
        self._bump()

    def residents(self) -> set[str]:
        """Names that it was told to keep and has."""
        return {
            e.entry.name
            for e in self.entries.values()
            if e.entry.residency is admin.Residency.RESIDENT and e.state is admin.AdapterState.READY
        }

    def names(self) -> set[str]:
        """Names that it knows."""
        return {name for name, _ in self.entries}

    def stable(self, name: str) -> str | None:
        """The revision that answers for a bare name."""
        found = [
            revision
            for (n, revision), e in self.entries.items()
            if n == name and e.entry.stable and e.state is admin.AdapterState.READY
        ]
        return found[0] if found else None

    def mend(self, name: str) -> None:
        """What had failed to load is loaded now."""
        for (n, _), entry in self.entries.items():
            if n == name and entry.state is admin.AdapterState.FAILED:
                entry.state, entry.reason = admin.AdapterState.READY, ""
        self._bump()

    def is_known(self, query: Mapping[str, str]) -> bool:
        """Whether whoever polls has the state already; pods of version 0.1.0 do not look."""
        return (query.get("boot_id"), query.get("after")) == (self.boot_id, str(self.generation))

    def state(self) -> admin.PodState:
        resident = [e for e in self.entries.values() if e.entry.residency is admin.Residency.RESIDENT]
        return admin.PodState(
            boot_id=self.boot_id,
            generation=self.generation,
            fence=self.fence,
            catalogue_generation=self.catalogue_generation,
            ready=self.is_ready,
            draining=self.is_draining,
            base=admin.BaseFacts(served_name="base", max_model_len=2048, dtype="float32", device="cpu"),
            budgets=admin.Budgets(
                max_resident_adapters=self.slots,
                max_rank=self.max_rank,
                rank_page=RANK_PAGE,
                total_rank_pages=self.slots * self.max_rank // RANK_PAGE,
                used_rank_pages=sum(-(-e.entry.source.facts.rank // RANK_PAGE) for e in resident),
                host_cache_bytes=1 << 30,
                host_used_bytes=0,
                disk_cache_bytes=1 << 30,
                disk_used_bytes=0,
            ),
            adapters=[entry.observed() for _, entry in sorted(self.entries.items())],
        )

    def told(self, query: Mapping[str, str], *, is_poll: bool = False) -> admin.PodState:
        """What it answers: its state, or what of it has changed since a generation that it remembers."""
        now = _without_counters(self.state().adapters)
        found = self.since(query, self._said, now)
        state = self.state()
        if found is None:
            self.num_whole += is_poll
            return state
        since, changed, removed = found
        self.num_differences += 1
        adapters = [one for one in state.adapters if _key(one) in changed]
        return admin.PodDifference(**{**dict(state), "adapters": adapters}, since=since, removed=removed)

    def since(
        self, query: Mapping[str, str], said: dict[int, dict[Key, Any]], now: dict[Key, Any]
    ) -> tuple[int, set[Key], list[admin.RevisionRef]] | None:
        """What has changed since the generation that a query names, of what was said then; None: that is to be said whole."""
        if said.get(self.generation, now) != now:
            self._bump()
        said[self.generation] = now
        for old in sorted(said)[:-REMEMBERED]:
            del said[old]
        since = int(query.get("since", -1)) if query.get("boot_id") == self.boot_id else -1
        if not self.tells_differences or (then := said.get(since)) is None:
            return None
        changed = {key for key, one in now.items() if then.get(key) != one}
        gone = sorted(then.keys() - now.keys())
        return since, changed, [admin.RevisionRef(name=name, revision=revision) for name, revision in gone]

    def take(self, write: admin.CatalogueWrite) -> None:
        """One catalogue write.

        Raises:
            Refused: it is older than one that was taken.
        """
        if (write.fence, write.generation) < (self.fence, self.catalogue_generation):
            self.refused.append(write)
            message = f"{write.fence}.{write.generation} is older than {self.fence}.{self.catalogue_generation}"
            raise Refused(409, admin.AdminError(reason=Reason.STALE_FENCE, message=message))
        self.writes.append(write)
        self.fence, self.catalogue_generation = write.fence, write.generation
        answered = {name for name in self.names() if self.stable(name)}
        for entry in write.adapters:
            self._tell(entry)
        for ref in write.removed:
            self._drain(ref)
        answered -= {ref.name for ref in write.removed}
        self.faults.extend(f"{name} is not answered any more" for name in answered if not self.stable(name))
        self._check_budget()
        self._bump()
        self._settle()

    def _tell(self, entry: admin.CatalogueEntry) -> None:
        key = (entry.name, revision_of(entry.digest))
        if entry.stable:
            for (name, _), other in self.entries.items():
                if name == entry.name and other.owner is admin.Owner.OPERATOR:
                    other.entry = other.entry.model_copy(update={"stable": False})
        known = self.entries.get(key)
        if known is not None and known.owner is admin.Owner.LOCAL:
            self.faults.append(f"local {entry.name} was touched")
            return
        if known is not None and known.state is not admin.AdapterState.FAILED:
            was_resident = known.entry.residency is admin.Residency.RESIDENT
            known.entry = entry
            if was_resident or entry.residency is admin.Residency.ON_DEMAND:
                return
        self.entries[key] = Entry(entry, state=admin.AdapterState.LOADING)
        if known is not None and known.state is admin.AdapterState.READY:
            self.entries[key].state = admin.AdapterState.READY  # it answers on demand while it is loaded to stay
        if entry.residency is admin.Residency.ON_DEMAND:
            self._finish(key, admin.AdapterState.READY if self.load_on_demand else admin.AdapterState.PENDING)
        elif self.load_seconds:
            self._later(self.load_seconds, self._finish, key, admin.AdapterState.READY)
        else:
            self._finish(key, admin.AdapterState.READY)

    def _finish(self, key: tuple[str, str], state: admin.AdapterState) -> None:
        if key in self.entries:
            failure = self.library.load_failure(self.entries[key].entry.source.ref)
            self.entries[key].state = admin.AdapterState.FAILED if failure else state
            self.entries[key].reason = failure or ""
            if failure in RETRYABLE:
                self._later(RETRY_SECONDS, self._retry, key)
        self._bump()
        self._settle()

    def _retry(self, key: tuple[str, str]) -> None:
        entry = self.entries.get(key)
        if entry is not None and entry.state is admin.AdapterState.FAILED:
            self._finish(key, admin.AdapterState.READY)

    def _drain(self, ref: admin.RevisionRef) -> None:
        key = (ref.name, ref.revision)
        if key not in self.entries:
            return
        if self.entries[key].owner is admin.Owner.LOCAL:
            self.faults.append(f"local {ref.name} was removed")
            return
        self.entries[key].state = admin.AdapterState.DRAINING
        self._later(self.drain_seconds, self._drained, key)

    def _drained(self, key: tuple[str, str]) -> None:
        self.entries.pop(key, None)
        self._bump()

    def _check_budget(self) -> None:
        budgets = self.state().budgets
        resident = [
            e
            for e in self.entries.values()
            if e.entry.residency is admin.Residency.RESIDENT and e.state is not admin.AdapterState.DRAINING
        ]
        if len(resident) > budgets.max_resident_adapters or budgets.used_rank_pages > budgets.total_rank_pages:
            self.faults.append(f"{len(resident)} adapters on {budgets.used_rank_pages} pages are too many")

    def _settle(self) -> None:
        busy = (admin.AdapterState.LOADING, admin.AdapterState.DOWNLOADING)
        if not self.is_ready and self.fence > 0 and not any(e.state in busy for e in self.entries.values()):
            self.is_ready = True
            if self.on_ready is not None:
                self.on_ready()

    def _later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        self._timers.add(asyncio.get_running_loop().call_later(seconds, call, *arguments))

    def _bump(self) -> None:
        self.generation += 1
        self._changed.set()

    async def listen(self, host: str, *, public_port: int | None, admin_port: int) -> None:
        """Open the ports; without a public one nobody asks for health."""
        admin_app, public_app = web.Application(middlewares=[self._guard]), web.Application()
        admin_app.router.add_get("/admin/v1/state", self._get_state)
        admin_app.router.add_get("/admin/v1/load", self._get_load)
        admin_app.router.add_put("/admin/v1/adapters", self._put_adapters)
        admin_app.router.add_get("/admin/v1/adapters/{name:.+}", self._get_adapter)
        admin_app.router.add_post("/admin/v1/resolve", self._post_resolve)
        admin_app.router.add_post("/admin/v1/ask", self._post_ask)
        public_app.router.add_get("/health", self._health)
        public_app.router.add_get("/ready", self._ready)
        for app, port in ((admin_app, admin_port), (public_app, public_port)):
            if port is not None:
                runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
                await runner.setup()
                await web.TCPSite(runner, host, port, reuse_address=True).start()
                self._runners.append(runner)

    async def close(self) -> None:
        """Close the ports."""
        self._awake.set()
        for timer in self._timers:
            timer.cancel()
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        await self._awake.wait()
        try:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if hashlib.sha256(given.encode()).hexdigest() != self.token_sha256:
                raise Refused(401, admin.AdminError(reason=Reason.UNAUTHORIZED, message="a wrong token"))
            answer: web.StreamResponse = await handler(request)
            return answer
        except Refused as refusal:
            return _json(refusal.error, refusal.status)

    async def _get_state(self, request: web.Request) -> web.Response:
        boot = self.boot_id
        await self._speaks.wait()
        if (after := request.query.get("after")) is not None:
            deadline = asyncio.get_running_loop().time() + float(request.query["wait_seconds"])
            with contextlib.suppress(TimeoutError):
                while self.generation <= int(after) and self.boot_id == boot:
                    self._changed.clear()
                    async with asyncio.timeout_at(deadline):
                        await self._changed.wait()
        if self.boot_id != boot and request.transport is not None:
            request.transport.close()  # of a process that has ended nobody hears more than that
        if self.is_known(request.query):
            return web.Response(status=304)
        return _json(self.told(request.query, is_poll=True))

    async def _get_load(self, request: web.Request) -> web.Response:
        self.num_load_asked += 1
        if not self.has_load:
            raise Refused(404, admin.AdminError(reason=Reason.NOT_FOUND, message="GET /admin/v1/load: Not Found"))
        return _json(self.load())

    def load(self) -> admin.PodLoad:
        return admin.PodLoad(
            boot_id=self.boot_id,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_requests=self.num_requests,
        )

    async def _put_adapters(self, request: web.Request) -> web.Response:
        self.take(admin.CatalogueWrite.model_validate_json(await request.read()))
        return _json(self.told(request.query))

    def answer_of(self, name: str) -> admin.AdapterAnswer:
        """What it has of a name.

        Raises:
            Refused: nothing.
        """
        found = [entry for (n, _), entry in sorted(self.entries.items()) if n == name]
        if not found:
            raise Refused(404, admin.AdminError(reason=Reason.NOT_FOUND, message=f"no adapter {name!r}"))
        sources = [entry.entry.source for entry in found if entry.owner is admin.Owner.OPERATOR]
        return admin.AdapterAnswer(revisions=[entry.observed() for entry in found], sources=sources)

    async def _get_adapter(self, request: web.Request) -> web.Response:
        return _json(self.answer_of(request.match_info["name"]))

    async def _post_resolve(self, request: web.Request) -> web.Response:
        question = admin.ResolveRequest.model_validate_json(await request.read())
        self.num_resolved += 1
        await asyncio.sleep(self.resolve_seconds)
        resolved = self.library.resolve(question.source)
        if resolved.facts.rank > self.max_rank:
            raise Refused(
                422,
                admin.AdminError(
                    reason=Reason.RANK_TOO_HIGH, message=f"rank {resolved.facts.rank} is above {self.max_rank}"
                ),
            )
        if question.expected_digest not in (None, resolved.digest):
            raise Refused(422, admin.AdminError(reason=Reason.DIGEST_MISMATCH, message=f"it has {resolved.digest}"))
        return _json(admin.ResolveAnswer(resolved=resolved))

    async def _post_ask(self, request: web.Request) -> web.Response:
        return _json(await self.ask(admin.AskRequest.model_validate_json(await request.read())))

    async def ask(self, question: admin.AskRequest) -> admin.AskAnswer:
        """What a revision answers.

        Raises:
            Refused: it does not.
        """
        self.asked.append(question)
        await asyncio.sleep(self.ask_seconds)
        if self.ask_error is not None:
            raise Refused(*self.ask_error)
        entry = self.entries.get((question.name, question.revision))
        if entry is None or entry.state is not admin.AdapterState.READY:
            message = f"adapter {question.name} has no revision {question.revision} here"
            raise Refused(503, admin.AdminError(reason=Reason.PENDING, message=message, retryable=True))
        source = entry.entry.source
        place = source.ref.path or source.ref.repo or ""
        said = question.prompt or "".join(message.content for message in question.messages or ())
        found = {hashlib.sha256(content.encode()).hexdigest(): text for content, text in self.library.answers.items()}
        text = found.get(source.files[0].sha256, f"{place}: {said}")
        return admin.AskAnswer(text=text, finish_reason="stop", num_tokens=1)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(text="ok" if self.is_ready else "waiting", status=200 if self.is_ready else 503)


def _key(entry: admin.ObservedAdapter) -> Key:
    return entry.name, entry.revision


def _without_counters(entries: list[admin.ObservedAdapter]) -> dict[Key, admin.ObservedAdapter]:
    nothing = {"num_in_flight": 0, "last_used": None, "num_tokens": None}
    return {_key(one): one.model_copy(update=nothing) for one in entries}


def _json(document: Wire, status: int = 200) -> web.Response:
    return web.Response(
        text=document.model_dump_json(by_alias=True, exclude_none=True), status=status, content_type="application/json"
    )


async def _serve(options: argparse.Namespace) -> None:
    pod = FakePod(
        token_sha256=options.admin_token_sha256,
        slots=options.max_resident_adapters,
        max_rank=options.max_rank,
        load_seconds=options.load_seconds,
    )
    pod.load_on_demand = options.load_on_demand
    assert quantity_bytes(options.disk_cache) > 0
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await pod.listen("0.0.0.0", public_port=PUBLIC_PORT, admin_port=ADMIN_PORT)
    await stop.wait()
    await pod.close()


def main() -> None:
    """A container: options of `lorafleet-inference serve` that say nothing to a fake are passed over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--admin-token-sha256", required=True)
    parser.add_argument("--max-resident-adapters", type=int, required=True)
    parser.add_argument("--max-rank", type=int, required=True)
    parser.add_argument("--disk-cache", required=True)
    parser.add_argument("--load-on-demand", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--load-seconds", type=float, default=0.05)
    options, _ = parser.parse_known_args()
    asyncio.run(_serve(options))


if __name__ == "__main__":
    main()
