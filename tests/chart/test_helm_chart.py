"""The chart by itself: Helm's own checks, its unit tests, and that every option has one."""

import os
import subprocess

import pytest
import yaml
from support.operators import CHART, helm

from devcluster import programs


def test_helm_finds_nothing_wrong():
    assert "0 chart(s) failed" in helm("lint", "--strict", "--kube-version", "1.36.0", str(CHART))


def test_every_unit_test_passes():
    program = next(p for p in programs.CHART_TOOLS if p.name == "helm-unittest")
    command = [programs.path(program), "--strict", CHART]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout


def options(values, path=""):
    """Every value that has no values below it."""
    for key, value in values.items():
        if isinstance(value, dict) and value and key != "resources":
            yield from options(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def given(values, path=""):
    for key, value in values.items():
        yield f"{path}{key}"
        if isinstance(value, dict):
            yield from given(value, f"{path}{key}.")


def test_every_option_is_set_by_a_unit_test():
    suites = [yaml.safe_load(file.read_text()) for file in (CHART / "tests").glob("*_test.yaml")]
    tested = {path for suite in suites for test in suite["tests"] for path in given(test.get("set", {}))}
    known = set(options(yaml.safe_load((CHART / "values.yaml").read_text())))
    assert known - tested == set()


@pytest.mark.parametrize(
    ("value", "words"),
    {
        "replica=3": "additional properties 'replica' not allowed",
        "store.uri=here": "/store/uri",
        "runtimes.enabled=maybe": "/runtimes/enabled",
        "jobs.imagee=x": "additional properties 'imagee' not allowed",
    }.items(),
)
def test_a_value_that_is_not_one_is_refused(value, words):
    with pytest.raises(AssertionError) as refused:
        helm("template", "lathe", str(CHART), "--kube-version", "1.36.0", "--set", value)
    assert words in str(refused.value)
