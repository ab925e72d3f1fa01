"""The soak of a pod in short: all attacks at three times its rate, beside a tenant whose answers are known."""

from pathlib import Path

import pytest
from soak.hostile.plot import svg_of
from soak.hostile.run import Settings, soak


@pytest.mark.slow
def test_hostile_traffic_changes_no_answer_of_a_tenant(tmp_path: Path) -> None:
    result = soak(Settings(seconds=10, seed=7, sample_seconds=1, num_cases=24), keep_log=tmp_path / "pod.log")
    # how long others wait says nothing on a machine that runs other tests too
    assert [one for one in result["findings"] if not one.startswith("bound: ") or "seconds" not in one] == []
    assert result["tenant"]["right"] > result["tenant"]["cases"]
    kinds = {"work", "fields", "wild", "leave", "garbage", "read"}
    assert kinds <= set(result["outcomes"])
    assert svg_of(result).startswith("<svg ")
