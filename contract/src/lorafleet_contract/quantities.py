"""Sizes as Kubernetes writes them."""


def quantity_bytes(quantity: str) -> int:
    """Return a Kubernetes quantity in bytes, e.g. `4Gi` -> 4294967296.

    Raises:
        ValueError: not a quantity.
    """
    units = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    number = quantity.rstrip("kKMGTi")
    try:
        return int(float(number) * units[quantity[len(number) :]])
    except (KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"not a quantity of bytes: {quantity!r}") from error
