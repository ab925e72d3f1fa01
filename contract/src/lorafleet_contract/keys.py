"""The file of keys by which a gateway or a pod knows its clients: hashes, what a key may ask, and how much."""

import json
import re
from functools import cached_property
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from lorafleet_contract.base import Wire

MAX_KEYS: Final = 1000
MAX_LIMIT: Final = 10**12
HASH_PREFIX: Final = "sha256:"

KeyName = Annotated[str, Field(max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$")]
"""Shown in metrics, logs and errors."""
KeyHash = Annotated[str, Field(pattern=rf"^{HASH_PREFIX}[0-9a-f]{{64}}$")]
"""SHA-256 of a key. Keys are 256 random bits, so no slow hash has to protect them from guessing."""
ModelPattern = Annotated[str, Field(min_length=1, max_length=254, pattern=r"^[A-Za-z0-9._:/-]*\*?$")]
"""A served name, or the beginning of some with `*` behind it."""
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]


class KeyEntry(Wire):
    """One key."""

    model_config = ConfigDict(strict=True)

    name: KeyName
    hashes: Annotated[list[KeyHash], Field(min_length=1, max_length=8)]
    """More than one while an application changes from one key to the next: the limits are of all together."""
    models: Annotated[list[ModelPattern], Field(min_length=1, max_length=1000)] = ["*"]
    """Base models and adapters that it may name."""
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    """Of prompts and answers together."""
    max_concurrent_requests: Limit | None = None

    def may_use(self, model: str) -> bool:
        """Whether it may name a model, which need not exist."""
        names, beginnings = self._allowed
        return model in names or model.startswith(beginnings)

    @cached_property
    def _allowed(self) -> tuple[frozenset[str], tuple[str, ...]]:
        """Whole names, and beginnings: lists of models are filtered by them, and there are thousands of both."""
        beginnings = tuple(entry[:-1] for entry in self.models if entry.endswith("*"))
        return frozenset(self.models), beginnings


class KeyList(Wire):
    """The whole file."""

    model_config = ConfigDict(strict=True)

    keys: Annotated[list[KeyEntry], Field(max_length=MAX_KEYS)]

    @model_validator(mode="after")
    def _are_different(self) -> Self:
        names, hashes = set[str](), dict[str, str]()
        for entry in self.keys:
            if entry.name in names:
                raise ValueError(f"there are two entries with the name {entry.name}")
            names.add(entry.name)
            for one in entry.hashes:
                if one in hashes:
                    raise ValueError(f"{hashes[one]} and {entry.name} have the same hash")
                hashes[one] = entry.name
        return self


class KeysError(Exception):
    """A file is none of keys; the message names the field, and never a value."""


def read_keys(content: bytes) -> KeyList:
    """Return the keys of a file: JSON.

    Raises:
        KeysError: it is none.
    """
    try:
        document = json.loads(content, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError):
        raise KeysError("is not valid JSON") from None
    return _validated(KeyList, document)


def read_entry(document: dict[str, Any]) -> KeyEntry:
    """Return one entry.

    Raises:
        KeysError: it is none.
    """
    return _validated(KeyEntry, document)


WireT = TypeVar("WireT", bound=Wire)


def _validated(kind: type[WireT], document: Any) -> WireT:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(_shown, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    raise KeysError(f"{where}: {message}" if where else message)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    found = dict(pairs)
    if len(found) < len(names):
        twin = next(name for name in found if names.count(name) > 1)
        raise KeysError(f"{_shown(twin)}: stands twice in one object")
    return found


def _shown(part: int | str) -> str:
    """Return a part of a path, unless it may be a key or a hash that stands where a field should."""
    return str(part) if isinstance(part, int) or _FIELD.fullmatch(part) else "(a field)"


_FIELD: Final = re.compile(r"[A-Za-z_]{1,32}")
