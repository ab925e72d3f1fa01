"""One policy through one scenario, and what is counted of it."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from measure.placing.demand import STEP_SECONDS, STEPS_PER_MINUTE, Scenario
from measure.placing.pods import SimulatedPod
from measure.placing.policies import Kept, Policy

SMOOTHING_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run costs and gives. All but `minutes` are of the time after the first five minutes."""

    loads: int
    """Adapters brought to a device, by a placement or by a request."""
    moves: int
    """Adapters that a placement has put on a pod or taken from one: its churn."""
    hit_rate: float
    """Requests whose adapter was on the device."""
    imbalance: float
    """Tokens of the busiest pod in a minute over the mean of the pods; the mean over the minutes."""
    imbalance_p95: float
    minutes: list[dict[str, float]]
    """Loads and imbalance of each minute."""


WARM_UP_MINUTES = 5


def run(policy: Policy, scenario: Scenario, slots: int) -> Outcome:
    """Simulate."""
    return _Run(policy, scenario, slots).outcome()


class _Run:
    def __init__(self, policy: Policy, scenario: Scenario, slots: int) -> None:
        self._policy = policy
        self._scenario = scenario
        self._slots = slots
        self._born = Counter[int]()
        self._pods = {number: self._new_pod(number) for number in range(scenario.num_pods)}
        self._kept: Kept = {}
        self._rates: dict[int, float] = {}
        self._minutes: list[dict[str, float]] = []
        self._num = Counter[str]()
        self._loads_before = 0
        self._gone_loads = 0

    def outcome(self) -> Outcome:
        for step, requests in enumerate(self._scenario.steps):
            is_changed = self._come_and_go(step)
            if is_changed or step % STEPS_PER_MINUTE == 0:
                self._place()
            tokens = Counter[int]()
            pods = list(self._pods.values())
            by_uid = {pod.uid: pod for pod in pods}
            holders = {adapter: [by_uid[uid] for uid in uids] for adapter, uids in self._kept.items()}
            for request in requests:
                pod = self._policy.choose(request.adapter, pods, holders.get(request.adapter, []))
                self._num["hits"] += pod.serve(request.adapter, request.tokens)
                self._num["requests"] += 1
                tokens[request.adapter] += request.tokens
            self._smooth(tokens)
            for pod in pods:
                pod.pass_step()
            if step % STEPS_PER_MINUTE == STEPS_PER_MINUTE - 1:
                self._end_minute()
        counted = self._minutes[WARM_UP_MINUTES:]
        imbalances = sorted(minute["imbalance"] for minute in counted)
        return Outcome(
            loads=round(sum(minute["loads"] for minute in counted)),
            moves=round(sum(minute["moves"] for minute in counted)),
            hit_rate=sum(minute["hits"] for minute in counted) / sum(minute["requests"] for minute in counted),
            imbalance=statistics.fmean(imbalances),
            imbalance_p95=imbalances[math.ceil(0.95 * len(imbalances)) - 1],
            minutes=[{"loads": minute["loads"], "imbalance": minute["imbalance"]} for minute in self._minutes],
        )

    def _new_pod(self, number: int) -> SimulatedPod:
        self._born[number] += 1
        return SimulatedPod(f"pod-{number}-{self._born[number]}", self._slots)

    def _come_and_go(self, step: int) -> bool:
        absent = self._scenario.absent.get(step)
        if absent is None:
            return False
        for number in range(self._scenario.num_pods):
            if number in absent and number in self._pods:
                self._gone_loads += self._pods.pop(number).num_loads
            elif number not in absent and number not in self._pods:
                self._pods[number] = self._new_pod(number)
        alive = {pod.uid for pod in self._pods.values()}
        self._kept = {adapter: uids & alive for adapter, uids in self._kept.items()}
        return True

    def _place(self) -> None:
        pods = list(self._pods.values())
        kept = self._policy.keep(pods, self._rates, self._kept)
        adapters = kept.keys() | self._kept.keys()
        nowhere: frozenset[str] = frozenset()
        self._num["moves"] += sum(len(kept.get(a, nowhere) ^ self._kept.get(a, nowhere)) for a in adapters)
        self._kept = kept
        for pod in pods:
            pod.keep(adapter for adapter, uids in kept.items() if pod.uid in uids)

    def _smooth(self, tokens: Mapping[int, int]) -> None:
        part = 1 - math.exp(-STEP_SECONDS / SMOOTHING_SECONDS)
        for adapter in self._rates.keys() | tokens.keys():
            rate = tokens.get(adapter, 0) / STEP_SECONDS
            before = self._rates.get(adapter, 0.0)
            self._rates[adapter] = before + part * (rate - before)

    def _end_minute(self) -> None:
        loads = self._gone_loads + sum(pod.num_loads for pod in self._pods.values())
        given = [pod.tokens for pod in self._pods.values()]
        minute = {"loads": loads - self._loads_before, "imbalance": max(given) / statistics.fmean(given)}
        self._minutes.append({**minute, **{name: self._num[name] for name in ("moves", "hits", "requests")}})
        self._loads_before = loads
        self._num.clear()
        for pod in self._pods.values():
            pod.tokens = 0
