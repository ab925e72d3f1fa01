"""Reads objects that another version of us may have written: what cannot be read of them costs as little as it can. Pure."""

import logging
from collections.abc import Collection
from typing import Any, TypeVar

from pydantic import ValidationError

from lorafleet_common.kube.cache import Unreadable
from lorafleet_common.paths import Json
from lorafleet_contract.base import Observed

logger = logging.getLogger(__name__)
ModelT = TypeVar("ModelT", bound=Observed)
Place = tuple[int | str, ...]
"""Where a value lies in an object: the keys and indices that lead to it."""


def read(model: type[ModelT], body: Json, spared: Collection[Place] = ()) -> ModelT:
    """Return an object. What is at the places `spared` is left out where it cannot be read; of a list, the entries.

    Raises:
        Unreadable: something else cannot be read.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problem = error
    meta = body.get("metadata", {})
    said = f"{body.get('kind')} {meta.get('namespace')}/{meta.get('name')}: {problem}"
    left_out, fields = set(), []
    for each in problem.errors(include_input=False, include_url=False):
        part = _spared_part(each["loc"], spared)
        if part is None:
            fields.append(".".join(map(str, each["loc"])))
        else:
            left_out.add(part)
    if fields:
        raise Unreadable(said, fields=tuple(fields), hints=_names_of(body)) from problem
    found = model.model_validate(_without(body, left_out))
    logger.warning("the rest of it is used, what cannot be read is left out of %s", said)
    return found


def _names_of(body: Json) -> frozenset[str]:
    """Return the served names that an object may have: the one that its status gives it, else the one that it asks for."""
    parts = [body.get(part) for part in ("status", "spec")]
    said = [part.get("servedName") if isinstance(part, dict) else None for part in parts]
    given = next((name for name in said if isinstance(name, str)), body.get("metadata", {}).get("name"))
    return frozenset({given} if isinstance(given, str) else ())


def _spared_part(place: Place, spared: Collection[Place]) -> Place | None:
    """Return the part that may be left out with what is at a place; None where there is none."""
    for one in spared:
        num_keys = len(one)
        if place[:num_keys] == one:
            is_entry = len(place) > num_keys and isinstance(place[num_keys], int)
            return place[: num_keys + is_entry]
    return None


def _without(value: Any, places: Collection[Place]) -> Any:
    """Return a JSON value without what is at some places."""
    here = {place[0] for place in places if len(place) == 1}
    deeper = [place for place in places if len(place) > 1]

    def rest(key: int | str, one: Any) -> Any:
        return _without(one, [place[1:] for place in deeper if place[0] == key])

    if isinstance(value, list):
        return [rest(index, one) for index, one in enumerate(value) if index not in here]
    if isinstance(value, dict):
        return {key: rest(key, one) for key, one in value.items() if key not in here}
    return value
