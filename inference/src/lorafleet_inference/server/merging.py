"""The lease that a request with `merged_adapters` runs with."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from lorafleet_contract.names import HEADER_REVISION, split_model
from lorafleet_inference.adapters.lease import Lease
from lorafleet_inference.adapters.merges import FIELD
from lorafleet_inference.errors import InvalidValue, RequestError
from lorafleet_inference.server.http import Exchange
from lorafleet_inference.server.keys import check_model
from lorafleet_inference.server.merged_fields import IDS, PATH, MergedAdapters
from lorafleet_inference.server.pod import Pod, lease_headers
from lorafleet_inference.server.surface import Leased


def check_parts(exchange: Exchange, merged: MergedAdapters) -> None:
    """Check that the key of a request may name every part.

    Raises:
        ModelForbidden: it may not.
    """
    for model in merged.ids:
        check_model(exchange.scope, split_model(model)[0], field=IDS)


@asynccontextmanager
async def leasing_merge(pod: Pod, exchange: Exchange, merged: MergedAdapters) -> AsyncIterator[Leased]:
    """Hold a merge, and each of its parts, for a request; the answer's headers name it.

    Raises:
        RequestError: a part is unknown, has failed or does not come in time; or they cannot be merged.
    """
    if HEADER_REVISION in exchange.request.headers:
        raise InvalidValue(
            f"the header {HEADER_REVISION} means one adapter; of a merge, ids are NAME@REVISION", param=IDS
        )
    try:
        pod.manager.merges.check_possible()
        async with AsyncExitStack() as stack:
            parts = []
            for model in merged.ids:
                name, revision = split_model(model)
                if name == pod.config.served_name:
                    raise InvalidValue(f"{name} is the base model, and only adapters are merged", param=IDS)
                parts.append(await stack.enter_async_context(await pod.manager.lease(name, revision)))
            ends = await _ends_of(pod, parts)
            hold_seconds = pod.config.adapter_hold_seconds
            lease = await stack.enter_async_context(
                await pod.manager.merges.lease(merged.recipe, parts, hold_seconds=hold_seconds)
            )
            exchange.headers.update(lease_headers(lease))
            vocabulary = lease.vocabulary
            assert vocabulary is not None
            yield Leased(pod.facts, vocabulary, pod.text, pod.text.templates, lease, ends)
    except RequestError as error:
        error.param = {"model": IDS, FIELD: PATH}.get(error.param or "", error.param)
        raise


async def _ends_of(pod: Pod, parts: Sequence[Lease]) -> tuple[int, ...]:
    """Return the tokens that end an answer of any part.

    Raises:
        InvalidValue: a part has a tokenizer of its own.
    """
    ends: dict[int, None] = {}
    for part in parts:
        assert part.key is not None
        assert part.directory is not None
        assert part.vocabulary is not None
        digest, num_rows = part.key.digest, part.vocabulary.num_inputs
        if await pod.text.own.find(digest, part.directory, num_rows) is not None:
            raise InvalidValue(f"{FIELD}: {part.name} has a tokenizer of its own, which is not merged", param=PATH)
        words = await pod.text.templates.own(digest, part.directory)
        named = None if words.eos_token is None else pod.text.special_id(words.eos_token)
        ends |= dict.fromkeys([*([] if named is None else [named]), *words.eos_token_ids])
    return tuple(one for one in ends if 0 <= one < pod.facts.vocab_size)
