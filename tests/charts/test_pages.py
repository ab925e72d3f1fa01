"""What the pages tell people to type is what the charts take."""

import re
from pathlib import Path

import chart_files
import pytest
import yaml
from support.charts import CHART, CRD_CHART, Helm

ROOT = Path(__file__).resolve().parents[2]
INSTALL = (ROOT / "docs" / "install.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), CHART / "values.yaml"]
VALUES = {value.name for value in chart_files.values()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_names_values_that_exist(page: Path) -> None:
    sections = "operator|gateway|networkPolicy|monitoring|rbac"
    for name in re.findall(rf"`((?:{sections})\.[A-Za-z.]+[A-Za-z])", page.read_text()):
        assert any(value == name or value.startswith(f"{name}.") or name.startswith(f"{value}.") for value in VALUES), (
            name
        )


def test_values_file_of_the_page_is_taken(helm: Helm) -> None:
    block = re.search(r"```yaml\n# values.yaml\n(.*?)```", INSTALL, re.DOTALL)
    assert block is not None
    rendered = helm.render(yaml.safe_load(block[1]))
    images = {rendered.container(component)["image"] for component in ("operator", "gateway")}
    assert images == {f"registry.example.com/lorafleet/{name}:0.1.0" for name in ("operator", "gateway")}
    assert "--engine-image=registry.example.com/lorafleet/inference:0.1.0" in rendered.container("operator")["args"]


def test_charts_and_programs_have_one_version() -> None:
    versions = {
        yaml.safe_load((chart / "Chart.yaml").read_text())[key]
        for chart in (CHART, CRD_CHART)
        for key in ("version", "appVersion")
    }
    for package in ("contract", "common", "operator", "gateway", "inference"):
        found = re.search(r'^version = "(.+)"$', (ROOT / package / "pyproject.toml").read_text(), re.MULTILINE)
        assert found is not None
        versions.add(found[1])
    assert len(versions) == 1, versions
