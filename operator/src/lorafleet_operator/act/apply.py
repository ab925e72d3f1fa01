"""Applies the objects of a base. What belongs to somebody else is not touched."""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Final

from lorafleet_common.kube.errors import KubeConflict, KubeError, KubeInvalid, KubeNotFound
from lorafleet_common.paths import Json, collection
from lorafleet_contract.names import MANAGED_BY
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, BaseModelResource
from lorafleet_contract.routing import AppliedObject
from lorafleet_operator.cluster.writes import Writes
from lorafleet_operator.decide.base_ready import ApplyProblem, DeploymentFacts, apply_problem, workload_facts
from lorafleet_operator.decide.objects import WORKLOADS, Child, objects_of
from lorafleet_operator.decide.optional_objects import OptionalFacts, OptionalKind, refused, wanted
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import InvalidSpec, NotOurs

logger = logging.getLogger(__name__)
PROBE_MANAGER: Final = "lorafleet-operator-probe"


class Applier:
    """The objects of all bases, as far as this process has applied them."""

    def __init__(self, api: Writes, *, engine_image: str, key: bytes) -> None:
        self._api = api
        self._engine_image = engine_image
        self._key = key
        self._ours: dict[str, str] = {}
        """Path -> uid of the base that owns it."""
        self._applied: dict[str, str] = {}
        """Path -> hash of what was applied, until the next resync."""
        self._settled: dict[str, DeploymentFacts] = {}
        """Path -> what was said of a Deployment that had nothing left to do, until the next resync."""
        self._generations: dict[str, int] = {}
        self._replicas: dict[BaseKey, int] = {}
        """How many pods a Deployment was told to have."""
        self._paths: dict[BaseKey, set[str]] = {}
        self._optional: dict[str, tuple[str | None, OptionalFacts]] = {}
        """Path of an optional object -> hash of what was wanted last, None: nothing; and what became of it, until the next
        resync."""

    def forget(self, key: BaseKey) -> None:
        """Free what is known of the objects of a base that is gone."""
        self._replicas.pop(key, None)
        for path in self._paths.pop(key, ()):
            for known in (self._ours, self._applied, self._settled, self._generations, self._optional):
                known.pop(path, None)

    def forget_applied(self) -> None:
        """Apply everything again at the next occasion: somebody may have changed it."""
        self._applied.clear()
        self._settled.clear()
        self._optional.clear()

    def is_lowering(self, base: BaseModelResource, num_pods: int) -> bool:
        """Whether applying a base asks for fewer pods than before, some of which stay, and Kubernetes can be told which.

        `num_pods` is how many there are: what counts where this process has not applied the base yet.
        """
        if base.spec.engine.hosts > 1:
            return False  # its groups have numbers, and the highest go first
        before = self._replicas.get((base.metadata.namespace, base.metadata.name), num_pods)
        return 0 < base.spec.replicas < before

    async def ensure(self, base: BaseModelResource) -> tuple[DeploymentFacts | None, ApplyProblem | None]:
        """Make the objects of a base what its spec says.

        Returns what is known of its Deployment, and what went wrong, if something did.

        Raises:
            KubeError: the API server did not answer as it should; trying again may help.
        """
        facts: DeploymentFacts | None = None
        try:
            for child in objects_of(base, engine_image=self._engine_image, key=self._key):
                self._paths.setdefault((base.metadata.namespace, base.metadata.name), set()).add(child.path)
                body = await self._apply(child, base.metadata.uid)
                if child.kind in WORKLOADS:
                    self._replicas[base.metadata.namespace, base.metadata.name] = base.spec.replicas
                    facts = self._facts(child.path, body, base.spec.replicas)
        except InvalidSpec as error:
            return facts, ApplyProblem(Reason.INVALID_SPEC, str(error))
        except NotOurs as error:
            return facts, ApplyProblem(Reason.APPLY_FAILED, str(error))
        except KubeError as error:
            if error.retryable:
                raise
            return facts, apply_problem(error, base)
        return facts, None

    async def ensure_optional(
        self, kind: OptionalKind, base: BaseModelResource, adapters: Sequence[AdapterResource]
    ) -> OptionalFacts:
        """Make the object of a kind what a base and its adapters say, or take away the one that was made before.

        Raises:
            KubeError: the API server did not answer as it should; trying again may help.
        """
        child, applied = wanted(kind, base, adapters), kind.applied(base)
        if child is None:
            return await self._drop(kind, base, applied)
        mark, known = self._optional.get(child.path, (None, OptionalFacts()))
        if mark == _mark(child):
            return known
        self._paths.setdefault((base.metadata.namespace, base.metadata.name), set()).add(child.path)
        self._applied.pop(child.path, None)
        try:
            body = await self._apply(child, base.metadata.uid)
            assert body is not None, "it is applied anew"
            facts = OptionalFacts(AppliedObject(name=child.name, uid=body["metadata"]["uid"]), Reason.APPLIED)
        except NotOurs as error:
            facts = OptionalFacts(None, Reason.APPLY_FAILED, str(error))
        except KubeError as error:
            if error.retryable:
                raise
            facts = refused(kind, error, applied)
        self._optional[child.path] = (_mark(child), facts)
        return facts

    async def _drop(self, kind: OptionalKind, base: BaseModelResource, applied: AppliedObject | None) -> OptionalFacts:
        if applied is None:
            return OptionalFacts()
        path = f"{collection(kind.api, kind.plural, base.metadata.namespace)}/{applied.name}"
        mark, known = self._optional.get(path, (None, OptionalFacts()))
        if mark is None and known.reason is Reason.FORBIDDEN:
            return known
        for memory in (self._optional, self._applied, self._ours):
            memory.pop(path, None)
        try:
            await self._api.delete(path, uid=applied.uid)
        except (KubeNotFound, KubeConflict):
            return OptionalFacts()  # it is gone, whoever did that
        except KubeError as error:
            if error.retryable:
                raise
            facts = refused(kind, error, applied)
            self._optional[path] = (None, facts)
            return facts
        logger.info("deleted %s %s/%s", kind.kind, base.metadata.namespace, applied.name)
        return OptionalFacts()

    def _is_applied(self, child: Child) -> bool:
        return self._applied.get(child.path) == _mark(child)

    def _facts(self, path: str, body: Json | None, num_wanted: int) -> DeploymentFacts:
        if body is None:
            return self._settled[path]
        facts = workload_facts(body)
        if facts.is_settled(num_wanted):
            self._settled[path] = facts
        return facts

    async def _apply(self, child: Child, owner_uid: str) -> Json | None:
        """Apply one object; None when nothing has changed since it was applied last.

        A Deployment that has something left to do is applied again for its status: reading is not among our rights.
        """
        mark = _mark(child)
        if self._is_applied(child) and (child.kind not in WORKLOADS or child.path in self._settled):
            return None
        self._settled.pop(child.path, None)
        if self._ours.get(child.path) != owner_uid:
            await self._check_ours(child, owner_uid)
        body = await self._api.apply(child.path, child.body, manager=MANAGED_BY)
        self._ours[child.path] = owner_uid
        self._applied[child.path] = mark
        generation = body["metadata"].get("generation", 0)
        if self._generations.get(child.path) != generation:
            self._generations[child.path] = generation
            logger.info("applied %s %s/%s", child.kind, child.body["metadata"]["namespace"], child.name)
        return body

    async def _check_ours(self, child: Child, owner_uid: str) -> None:
        """Refuse to take over an object that somebody else made under the same name.

        Reading is not among the rights of the operator: a dry run tells as much.

        Raises:
            NotOurs: it exists and has another owner, or none.
        """
        try:
            await self._api.create(child.collection, child.body, dry_run=True)
        except KubeConflict:
            metadata = {"name": child.name, "namespace": child.body["metadata"]["namespace"]}
            probe = {"apiVersion": child.body["apiVersion"], "kind": child.kind, "metadata": metadata}
            problem = f"{child.kind} {child.name} exists and does not belong to this BaseModelDeployment"
            try:
                found = await self._api.apply(child.path, probe, manager=PROBE_MANAGER, dry_run=True)
            except KubeInvalid as error:  # admission keeps the operator to objects of BaseModelDeployments
                raise NotOurs(f"{problem}: {error.message}") from error
            owners = [ref.get("uid") for ref in found.get("metadata", {}).get("ownerReferences") or []]
            if owner_uid not in owners:
                raise NotOurs(problem) from None


def _mark(child: Child) -> str:
    return hashlib.sha256(json.dumps(child.body, sort_keys=True).encode()).hexdigest()
