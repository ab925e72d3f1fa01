"""Settings of memory are for CPUs and give way to those of the user."""

from lorafleet_inference.engine.allocator import TUNABLES, with_settings


def test_a_cpu_gets_them() -> None:
    assert with_settings({"HOME": "/"}, "auto")["HOME"] == "/"
    assert "glibc.malloc.hugetlb=1" in with_settings({}, "cpu")[TUNABLES].split(":")


def test_cuda_and_own_settings_stay_as_they_are() -> None:
    assert with_settings({"HOME": "/"}, "cuda") == {"HOME": "/"}
    assert with_settings({TUNABLES: "glibc.malloc.check=3"}, "cpu") == {TUNABLES: "glibc.malloc.check=3"}
