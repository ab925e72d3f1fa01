"""How many values a JSON text has, told without parsing it."""

MAX_VALUES = 1 << 16
"""Strings, lists and objects of a body, names of fields included. Texts cost only their copying."""
MAX_ITEMS = 1 << 19
"""Of all lists and objects together. Numbers cost little: token ids of a batch of long prompts fit."""
_STRUCTURE = b'"[{,'
_REST = bytes(set(range(256)) - set(_STRUCTURE))


class TooManyValues(Exception):
    """A body has more values than any request that fits a model needs; the message is a sentence for the client."""


def check_num_values(body: bytes | bytearray, *, most: int = MAX_VALUES, most_items: int = MAX_ITEMS) -> None:
    """Check a body before it is parsed, since parsing many values keeps Python's lock, and so the event loop, from all others.

    Takes some 10 ms for 10 MB. What is no JSON is left to whoever parses it.

    Raises:
        TooManyValues: it has more than any request needs.
    """
    if len(body) <= most:
        return
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # then every quote begins or ends a string
    structure = body.translate(None, _REST)
    num_strings = structure.count(b'"') // 2
    if num_strings <= most:
        outside = b"".join(structure.split(b'"')[::2])
        num_commas = outside.count(b",")
        if num_commas >= most_items:
            raise TooManyValues(f"the lists and objects of the body have more than {most_items} items together")
        if num_strings + len(outside) - num_commas <= most:
            return
    raise TooManyValues(f"the body has more than {most} strings, lists and objects")
