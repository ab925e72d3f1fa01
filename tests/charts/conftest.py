"""helm, as the local cluster's cache has it."""

import pytest
from localcluster.gobuild import programs
from support.charts import Helm


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where helm is not built yet, building it is part of making the cluster: such tests run with its tests."""
    if programs(lambda _: None).complete():
        return
    for item in items:
        if "helm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The pinned helm; built when it is missing."""
    return Helm(programs(lambda _: None).prepare() / "bin" / "helm")
