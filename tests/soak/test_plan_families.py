"""Every family of transformers' own plans that there is a tiny model of: two ranks answer as one."""

from pathlib import Path

import pytest
from support.plan_families import PLAN_FAMILIES, check_two_ranks

from lorafleet_inference.config import Quantization


@pytest.mark.soak
@pytest.mark.parametrize("family", PLAN_FAMILIES)
def test_two_ranks_answer_as_one(family: str, tmp_path: Path) -> None:
    check_two_ranks(family, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("family", ["glm", "olmo3", "qwen2-moe"])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_two_ranks_answer_as_one_with_weights_quantised_at_load(
    family: str, kind: Quantization, tmp_path: Path
) -> None:
    check_two_ranks(family, tmp_path, kind)
