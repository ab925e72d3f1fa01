"""`merged_adapters`, as LoRAX's client sends it."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from lorafleet_contract.lorax import MAX_MERGED
from lorafleet_inference.adapters.merges import FIELD, Recipe
from lorafleet_inference.engine.merging import MajoritySign, MergeMethod
from lorafleet_inference.server.strict import Strict

MAX_WEIGHT = 1000
PATH = f"parameters.{FIELD}"
IDS = f"{PATH}.ids"
Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]
# strict models take an enum's member only, not its value
Method = Annotated[MergeMethod, Field(strict=False)]
Majority = Annotated[MajoritySign, Field(strict=False)]


class MergedAdapters(Strict):
    """Adapters to merge, each with its weight."""

    ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=512)]], Field(min_length=1, max_length=MAX_MERGED)
    ]
    weights: list[Weight]
    merge_strategy: Method = MergeMethod.LINEAR
    density: Annotated[float, Field(ge=0, le=1)] = 0.0
    majority_sign_method: Majority = MajoritySign.TOTAL

    @model_validator(mode="after")
    def _fields_go_together(self) -> Self:
        if len(self.weights) != len(self.ids):
            raise ValueError(f"weights: {len(self.weights)} of them for {len(self.ids)} ids; each needs one")
        if self.merge_strategy.prunes and self.density == 0:
            raise ValueError(
                f"density: with merge_strategy {self.merge_strategy.value!r} it says which part of the values is kept, "
                "and has to be more than 0"
            )
        return self

    @property
    def recipe(self) -> Recipe:
        """What is to be done with the parts."""
        return Recipe(self.weights, self.merge_strategy, self.density, self.majority_sign_method)
