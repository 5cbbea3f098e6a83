"""The kustomize folders follow from the chart."""

import importlib.util

from support.operators import CHART

FOLDER = CHART.parents[1] / "kustomize"


def test_what_is_committed_is_what_the_chart_gives():
    """`python kustomize/render.py` mends it."""
    spec = importlib.util.spec_from_file_location("render", FOLDER / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rendered = module.files()
    assert {name: (FOLDER / name).read_text() for name in rendered} == rendered
