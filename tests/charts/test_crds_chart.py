"""The definitions' chart holds crds/, and an uninstall keeps them."""

import chart_files
import pytest
import yaml
from support.charts import CRD_CHART, Helm


def test_templates_are_made_from_crds() -> None:
    assert {path.name for path in chart_files.CRD_TEMPLATES.glob("*.yaml")} == {
        path.name for path in chart_files.crd_templates()
    }
    for path, text in chart_files.crd_templates().items():
        assert path.read_text() == text, "run: make charts"
        assert not path.is_symlink()


def test_rendered_definitions_are_those_of_crds_and_are_kept(helm: Helm) -> None:
    rendered = helm.render(chart=CRD_CHART)
    originals = {
        item["metadata"]["name"]: item
        for item in map(yaml.safe_load, (path.read_text() for path in chart_files.CRDS.glob("*.yaml")))
    }
    assert len(rendered.objects) == len(originals) == 2
    for item in rendered.objects:
        assert item["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert item == originals[item["metadata"]["name"]]


@pytest.mark.parametrize(
    ("values", "annotations"),
    [
        ({"keep": False}, None),
        ({"keep": False, "annotations": {"a": "b"}}, {"a": "b"}),
        ({"annotations": {"a": "b"}}, {"helm.sh/resource-policy": "keep", "a": "b"}),
    ],
)
def test_annotations_are_those_asked_for(
    helm: Helm, values: dict[str, object], annotations: dict[str, str] | None
) -> None:
    for item in helm.render(values, chart=CRD_CHART).objects:
        assert item["metadata"].get("annotations") == annotations


def test_chart_is_well(helm: Helm) -> None:
    helm.lint(CRD_CHART)


def test_a_definition_that_helm_would_read_as_a_template_is_noticed() -> None:
    with pytest.raises(AssertionError):
        chart_files.crd_template('metadata:\n  name: x\nspec: "{{ .Values }}"\n')
