"""A form of an answer whose tokens are known, in place of a compiled grammar."""

from itertools import takewhile


class Said:
    """A form that says its answer token by token; None stands for one that the model chooses."""

    problem = None

    def __init__(self, *tokens: int | None) -> None:
        self.left = list(tokens)

    def accept(self, _: int) -> bool:
        self.left.pop(0)
        return bool(self.left)

    def forced(self) -> list[int]:
        return [token for token in takewhile(lambda one: one is not None, self.left) if token is not None]

    def allowed(self, token_ids: tuple[int, ...] | list[int]) -> int:
        pairs = zip(self.left, token_ids, strict=False)
        return len(list(takewhile(lambda pair: pair[0] in (None, pair[1]), pairs)))
