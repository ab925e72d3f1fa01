"""The chains of checks: the first that finds something decides, and each says what to do."""

import pytest
from support import operator_views as v

from lorafleet_operator.decide import accept, adapter_ready, base_ready
from lorafleet_operator.decide.checks import Check, first_found

CHAINS = {"accept": accept.ACCEPTANCE, "adapter": adapter_ready.READINESS, "base": base_ready.READINESS}


@pytest.mark.parametrize("chain", CHAINS)
def test_check_says_what_to_do(chain: str) -> None:
    expects = [check.expects for check in CHAINS[chain]]
    assert len(set(expects)) == len(expects)
    assert all(check.expects.endswith(".") and check.hint for check in CHAINS[chain])


def test_first_check_that_finds_something_decides() -> None:
    def find(word: str) -> Check[str, str]:
        return Check(f"no {word}.", (), f"drop {word}", lambda given: word if word in given else None)

    chain = (find("a"), find("b"))
    assert first_found(chain, "c") is None
    found = first_found(chain, "ba")
    assert found is not None
    assert (found[0].hint, found[1]) == ("drop a", "a")


@pytest.mark.parametrize(
    ("adapter", "base", "hint"),
    [
        (v.adapter(), None, "Apply the BaseModelDeployment"),
        (v.adapter(namespace="friends"), v.base(), "allowedNamespaces"),
        (v.adapter(source={"name": "hub", "repo": "solo/two"}), v.base(), "huggingFace.repos"),
        (v.adapter(source={"name": "models", "repo": "solo/two"}), v.base(), "else `path`"),
    ],
)
def test_refusal_carries_the_hint_and_a_declared_reason(adapter, base, hint: str) -> None:
    snapshot = v.snapshot(adapter, base=base)
    refusal = accept.refusal_of(adapter, snapshot)
    assert refusal is not None
    assert hint in refusal.hint
    check = next(check for check in accept.ACCEPTANCE if check.find(accept.Candidate(adapter, snapshot)) is not None)
    assert refusal.reason in check.reasons
