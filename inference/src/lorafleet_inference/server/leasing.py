"""The lease that a request runs with: of the base, of an adapter that was declared, or of one that it names itself."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from lorafleet_contract.lorax import AD_HOC, MERGED
from lorafleet_contract.names import HEADER_REVISION, split_model
from lorafleet_inference.adapters.ad_hoc import Wish
from lorafleet_inference.adapters.lease import Lease
from lorafleet_inference.adapters.sources.base import Kind
from lorafleet_inference.engine.vocabulary import vocabulary_of
from lorafleet_inference.errors import InvalidValue, RequestError
from lorafleet_inference.server.http import Exchange
from lorafleet_inference.server.keys import check_model
from lorafleet_inference.server.merged_fields import MergedAdapters
from lorafleet_inference.server.merging import check_parts, leasing_merge
from lorafleet_inference.server.pod import Pod, lease_headers
from lorafleet_inference.server.surface import Leased
from lorafleet_inference.text.own_text import Codec


class Asked(Protocol):
    """What a request says of whose answer it wants."""

    @property
    def model(self) -> str:
        """Name of the base or of an adapter, `NAME@REVISION` too."""

    @property
    def merge(self) -> MergedAdapters | None:
        """Adapters that are wanted merged, in the place of `model`."""

    @property
    def wish(self) -> Wish | None:
        """Where `model` is to be found if nothing of that name is known, and that may be asked for."""


def lease_for(
    pod: Pod, exchange: Exchange, asked: Asked, *, model_field: str
) -> tuple[str, AbstractAsyncContextManager[Leased]]:
    """Return the name that a request waits by, and the way to what answers it. `model_field`: named where the name is at fault.

    Raises:
        RequestError: the key of the request may not name it, or what is asked for contradicts itself.
    """
    if asked.merge is not None:
        check_parts(exchange, asked.merge)
        return MERGED, leasing_merge(pod, exchange, asked.merge)
    name, _ = split_model(asked.model)
    if asked.wish is not None and not pod.manager.knows(name):
        check_model(exchange.scope, name, field=model_field)
        return AD_HOC, leasing_ad_hoc(pod, exchange, asked.wish)
    if asked.wish is not None and asked.wish.token is not None:
        raise InvalidValue(f"api_token: {name} is declared here, and needs none", param="parameters.api_token")
    check_model(exchange.scope, name, field=model_field)  # before it is told how many wait for it
    return name, leasing(pod, exchange, asked.model)


def check_source(source: Kind | None, leased: Leased) -> None:
    """Check that what answers comes from where a request says.

    Raises:
        InvalidValue: it does not.
    """
    others = leased.lease.kinds - {source}
    if source is not None and others:
        raise InvalidValue(
            f"adapter_source: {leased.lease.name} comes from {' and '.join(sorted(others))}, not from "
            f"{source}, and adapters come from where they are declared to",
            param="parameters.adapter_source",
        )


@asynccontextmanager
async def leasing(pod: Pod, exchange: Exchange, model: str) -> AsyncIterator[Leased]:
    """Hold the base model or an adapter for a request; the answer's headers name it.

    `name@revision` and the header mean the same revision.

    Raises:
        RequestError: the key of the request may not name it; it is unknown, has failed or does not come in time.
    """
    name, revision = split_model(model)
    check_model(exchange.scope, name)
    asked = exchange.request.headers.get(HEADER_REVISION)
    if revision is not None and asked not in (None, revision):
        raise InvalidValue(f"{model!r} means another revision than the header {HEADER_REVISION}", param="model")
    async with await pod.manager.lease(name, revision if revision is not None else asked) as lease:
        exchange.headers.update(lease_headers(lease))
        yield await _leased(pod, lease)


@asynccontextmanager
async def leasing_ad_hoc(pod: Pod, exchange: Exchange, wish: Wish) -> AsyncIterator[Leased]:
    """Hold an adapter that nobody declared for a request, likewise.

    Raises:
        RequestError: the caller cannot have it, or it cannot be answered with.
    """
    if HEADER_REVISION in exchange.request.headers:
        raise InvalidValue(
            f"the header {HEADER_REVISION} means a declared adapter, and {wish.id} is none",
            param="parameters.adapter_id",
        )
    try:
        lease = await pod.manager.ad_hoc.lease(wish, hold_seconds=pod.config.adapter_hold_seconds)
    except RequestError as error:
        error.param = error.param and f"parameters.{error.param}"
        raise
    async with lease:
        exchange.headers.update(lease_headers(lease))
        yield await _leased(pod, lease)


async def _leased(pod: Pod, lease: Lease) -> Leased:
    digest = lease.key.digest if lease.key else None
    vocabulary = lease.vocabulary or vocabulary_of(pod.facts)
    words = await pod.text.templates.own(digest, lease.directory)
    text: Codec = pod.text
    if digest is not None and lease.directory is not None:
        text = await pod.text.own.find(digest, lease.directory, vocabulary.num_inputs) or pod.text
    named = None if words.eos_token is None else text.special_id(words.eos_token)
    ends = dict.fromkeys([*([] if named is None else [named]), *words.eos_token_ids])
    return Leased(
        pod.facts,
        vocabulary,
        text,
        pod.text.templates,
        lease,
        tuple(one for one in ends if 0 <= one < vocabulary.num_outputs),
        has_own_tokens=text is not pod.text,
    )
