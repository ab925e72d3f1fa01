"""The admin API of a pod, with its contract's types."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from lorafleet_contract import admin
from lorafleet_contract.sources import ResolvedSource

WAIT_SECONDS = 120.0


class Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, error: admin.AdminError) -> None:
        super().__init__(f"{status} {error.reason}: {error.message}")
        self.status = status
        self.reason = error.reason
        self.message = error.message
        self.retryable = error.retryable


class Admin:
    """Requests of an operator, or of a person."""

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=WAIT_SECONDS + 30, trust_env=False)
        self._generation = 0

    def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Return the JSON of an answer.

        Raises:
            Refused: it is not 2xx.
        """
        answer = self.http.request(method, path, json=body, params=query or None)
        if not answer.is_success:
            raise Refused(answer.status_code, admin.AdminError.model_validate_json(answer.content))
        return answer.json() if answer.content else None

    def state(self, **query: Any) -> admin.PodState:
        return admin.PodState.model_validate(self.request("GET", "/admin/v1/state", **query))

    def resolve(self, source: str, place: str, **more: Any) -> ResolvedSource:
        kind = "repo" if "/" in place else "path"
        body = {"source": {"name": source, kind: place}, **more}
        answer = self.request("POST", "/admin/v1/resolve", body)
        return admin.ResolveAnswer.model_validate(answer).resolved

    def write(
        self, *entries: admin.CatalogueEntry, removed: Iterable[admin.RevisionRef] = (), fence: int = 1, **more: Any
    ) -> None:
        """Write a catalogue with the next generation."""
        self._generation += 1
        write = admin.CatalogueWrite(
            fence=fence, generation=self._generation, adapters=list(entries), removed=list(removed), **more
        )
        self.request("PUT", "/admin/v1/adapters", write.model_dump(mode="json", by_alias=True))

    def put(self, name: str, source: str, place: str, **more: Any) -> admin.ObservedAdapter:
        kind = "repo" if "/" in place else "path"
        body = {"source": {"name": source, kind: place}, **more}
        return admin.ObservedAdapter.model_validate(self.request("PUT", f"/admin/v1/adapters/{name}", body))

    def adapter(self, name: str, revision: str | None = None) -> admin.ObservedAdapter | None:
        """One revision as the state shows it; the stable one unless named."""
        for one in self.state().adapters:
            if one.name == name and (one.revision == revision or (revision is None and one.stable)):
                return one
        return None

    def wait(self, what: str, condition: Callable[[admin.PodState], bool]) -> admin.PodState:
        """Wait by long polls until the state is so."""
        deadline = time.monotonic() + WAIT_SECONDS
        state = self.state()
        while not condition(state):
            assert time.monotonic() < deadline, f"not in time: {what}; last seen: {state.model_dump_json(indent=1)}"
            state = self.state(after=state.generation, wait_seconds=2)
        return state

    def wait_for(self, name: str, state: admin.AdapterState, revision: str | None = None) -> admin.ObservedAdapter:
        """Wait until an adapter has a state."""
        found: list[admin.ObservedAdapter] = []

        def has(seen: admin.PodState) -> bool:
            found[:] = [
                one
                for one in seen.adapters
                if one.name == name and (one.revision == revision or (revision is None and one.stable))
            ]
            return bool(found) and found[0].state is state

        self.wait(f"{name} {state}", has)
        return found[0]


def entry(name: str, resolved: ResolvedSource, **flags: Any) -> admin.CatalogueEntry:
    """A catalogue entry."""
    return admin.CatalogueEntry(name=name, source=resolved, **flags)
