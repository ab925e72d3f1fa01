"""Lives of a scheduler, drawn from a seed: requests of all kinds come, are cancelled, and run short of memory and budget."""

import hashlib
import random
from collections.abc import Callable, Mapping

import msgspec
from support.engines import key_of
from support.simulation import EOS, Simulation, request

from lorafleet_inference.engine.messages import AdapterKey, LengthRope, RopeKind
from lorafleet_inference.engine.pace import Pace, StepBound
from lorafleet_inference.engine.plan import StepPlan

KEYS = (key_of("a"), key_of("b"), key_of("c"))
MAX_MODEL_LEN = 40
BOUND = StepBound(Pace(0.25, fixed=0.01, prompt_token=0.001, answer_token=0.02))
ROPES = (None, LengthRope(RopeKind.LONGROPE, 10), LengthRope(RopeKind.DYNAMIC, 10))


def simulation_of(
    rng: random.Random,
    seed: int,
    invocations: Mapping[AdapterKey, tuple[int, ...]] | None = None,
    *,
    num_ahead: int = 0,
) -> Simulation:
    """A scheduler with little memory."""
    return Simulation(
        num_blocks=rng.randrange(10, 40),
        max_batch_tokens=rng.randrange(2, 40),
        max_batch_requests=rng.randrange(1, 9),
        max_model_len=MAX_MODEL_LEN,
        length_rope=rng.choice(ROPES),
        invocations=invocations,
        num_ahead=num_ahead,
        token=lambda request_id, position: EOS if random.Random(f"{seed}{request_id}{position}").random() < 0.1 else 2,
    )


def play(seed: int, describe: Callable[[Simulation, StepPlan], str], num_steps: int = 40, *, num_ahead: int = 0) -> str:
    """Return the digest of all plans of a life, in words of `describe`. No two equal prompts come before one step."""
    rng = random.Random(seed)
    simulation = simulation_of(rng, seed, num_ahead=num_ahead)
    plans = []
    for number in range(num_steps):
        shared = [None, 5, 6]
        for _ in range(rng.randrange(3)):
            name = f"r{len(simulation.stories)}"
            seed_of_prompt = (
                shared.pop(rng.randrange(1, len(shared))) if len(shared) > 1 and rng.random() < 0.5 else None
            )
            asked = request(
                name,
                rng.choice((None, *KEYS)),
                num_prompt=rng.randrange(1, MAX_MODEL_LEN),
                max_tokens=rng.randrange(1, 14),
                seed=seed_of_prompt,
            )
            scored = 0 if rng.random() < 0.2 else None
            sampling = msgspec.structs.replace(asked.sampling, prompt_logprobs=scored)
            simulation.submit(msgspec.structs.replace(asked, sampling=sampling, priority=rng.randrange(2)))
        if simulation.stories and rng.random() < 0.2:
            simulation.cancel(rng.choice(list(simulation.stories)))
        few = {*rng.sample(KEYS, 2), *simulation.scheduler.running_adapters()}
        held = {KEYS[0]} if rng.random() < 0.2 else set()
        plan = simulation.step(few if number % 3 == 0 else set(KEYS), held, BOUND if seed % 2 else None)
        plans.append(describe(simulation, plan))
    return hashlib.sha256("\n".join(plans).encode()).hexdigest()[:16]
