"""`lathe rollback` and `lathe diff` on a real API server: what the operator would make of the spec decides."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.jobs import EXPORT, SETTINGS, STATIC, spec, with_kinds
from support.world import finished

from devcluster import controlplane, programs
from devcluster.controlplane import Cluster
from lathe_cli import cluster as user_cluster
from lathe_operator.plan.observed import Observed
from lathe_operator.plan.resolve import parse, resolve
from lathe_operator.plan.revision import revision

pytestmark = pytest.mark.e2e
Json = dict[str, Any]
DYNAMIC = {"name": "int8", "type": "Quantize", "quantize": {"method": "Dynamic"}}


class User:
    """Somebody with a kubeconfig, an OptimizedModel, and an operator that writes down revisions."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def model(self) -> Json:
        return self.cluster.get("-n", self.namespace, "optimizedmodel", "patterns")

    def apply(self, document: Json, **metadata: Any) -> str:
        """The user applies a spec, and the operator brings it to its end; name of the revision."""
        meta = {"name": "patterns", "namespace": self.namespace, **metadata}
        value = {"apiVersion": "lathe.dev/v1alpha1", "kind": "OptimizedModel", "metadata": meta, "spec": document}
        self.cluster.apply(value, manager="user")
        return self.operates()

    def wanted(self) -> Json:
        """The revision that the operator makes of the spec as it is."""
        raw = self.model()
        return revision(resolve(parse(raw), Observed(raw), SETTINGS), raw)

    def operates(self, *, serves: bool = True) -> str:
        wanted = self.wanted()
        name: str = wanted["metadata"]["name"]
        if not self.works("modelrevision", name):
            self.cluster.apply(wanted, manager="lathe-operator")
        done = json.dumps({"status": finished(wanted) if serves else {"summary": "Refused"}})
        self._status("modelrevision", name, done)
        generation = self.model()["metadata"]["generation"]
        found = {
            "observedGeneration": generation,
            "observedRevision": name,
            **({"servingRevision": name} if serves else {}),
        }
        self._status("optimizedmodel", "patterns", json.dumps({"status": found}))
        return name

    def works(self, kind: str, name: str) -> bool:
        """Whether there is such an object."""
        return controlplane.works(self.cluster, "-n", self.namespace, kind, name)

    def _status(self, kind: str, name: str, patch: str) -> None:
        where = ("-n", self.namespace, "patch", kind, name, "--subresource=status", "--type=merge", "-p", patch)
        self.cluster.kubectl(*where)

    def lathe(self, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        kubectl = programs.path(next(p for p in programs.CONTROL_PLANE if p.name == "kubectl"))
        environment = os.environ | {"KUBECONFIG": str(self.cluster.kubeconfig), "PATH": str(path or kubectl.parent)}
        command = [sys.executable, "-m", "lathe_cli.main", *arguments, "-n", self.namespace]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)


@pytest.fixture(scope="module")
def lathe_kinds(control_plane: Cluster) -> Cluster:
    return with_kinds(control_plane)


@pytest.fixture
def user(lathe_kinds: Cluster, namespace: str) -> User:
    return User(lathe_kinds, namespace)


def dynamic() -> Json:
    """The same model, quantised otherwise, with more servers on other nodes."""
    document = spec()
    document["recipe"]["stages"] = [DYNAMIC, EXPORT]
    document["targets"][0] |= {
        "pool": {"nodeSelector": {"disk": "fast"}},
        "serving": {"mode": "DynamicBatch", "replicas": {"min": 3}},
    }
    return document


def test_it_goes_back_and_forth_between_the_very_same_revisions(user):
    first = user.apply(spec())
    second = user.apply(dynamic())
    assert first != second
    done = user.lathe("rollback", "patterns")
    assert done.returncode == 0, done.stderr
    assert "recipe.stages[int8].quantize.method: Dynamic -> Static" in done.stdout
    assert f"patterns asks for {first} again" in done.stdout
    assert user.wanted()["metadata"]["name"] == first
    assert user.wanted()["spec"]["stages"][0]["quantize"]["method"] == "Static"
    target = user.model()["spec"]["targets"][0]
    assert target["serving"]["replicas"]["min"] == 3
    assert target["serving"]["mode"] == "SingleSample"
    assert target["pool"] == {"nodeSelector": {"disk": "fast"}}
    assert user.operates() == first
    assert user.lathe("rollback", "patterns").returncode == 0
    assert user.wanted()["metadata"]["name"] == second


def test_it_goes_to_the_revision_that_serves_while_the_newest_one_does_not(user):
    user.apply(dynamic())
    serving = user.apply(spec())
    refused = spec() | {"seed": 7}
    value = {**user.model(), "spec": refused}
    del value["status"]
    user.cluster.apply(value, manager="user")
    user.operates(serves=False)
    done = user.lathe("rollback", "patterns")
    assert done.returncode == 0, done.stderr
    assert user.wanted()["metadata"]["name"] == serving
    assert user.model()["spec"]["seed"] == 0


def test_a_revision_may_be_named_by_the_beginning_of_its_hash(user):
    first = user.apply(spec())
    user.apply(dynamic())
    third = user.apply(spec() | {"seed": 7})
    done = user.lathe("rollback", "patterns", "--to", first.rpartition("-")[2][:6], "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "seed: 7 -> 0" in done.stdout
    assert "nothing is changed" in done.stdout
    assert user.wanted()["metadata"]["name"] == third
    assert user.lathe("rollback", "patterns", "--to", first).returncode == 0
    assert user.wanted()["metadata"]["name"] == first
    user.operates()
    again = user.lathe("rollback", "patterns", "--to", first)
    assert (again.returncode, again.stdout) == (0, f"patterns asks for {first} already\n")


def test_a_change_that_was_made_meanwhile_is_never_overwritten(user, monkeypatch):
    user.apply(spec())
    before = user.model()
    user.apply(dynamic())
    kubectl = programs.path(next(p for p in programs.CONTROL_PLANE if p.name == "kubectl"))
    monkeypatch.setenv("KUBECONFIG", str(user.cluster.kubeconfig))
    monkeypatch.setenv("PATH", str(kubectl.parent))
    with pytest.raises(user_cluster.ClusterError, match="was changed by somebody else meanwhile"):
        user_cluster.Cluster(user.namespace).replace_spec(before, before["spec"])
    assert user.model()["spec"]["recipe"]["stages"][0]["quantize"]["method"] == "Dynamic"


def test_git_is_named_where_it_would_set_the_spec_back(user):
    user.apply(spec(), annotations={"argocd.argoproj.io/tracking-id": "vision:lathe.dev/OptimizedModel:patterns"})
    user.apply(dynamic(), annotations={"argocd.argoproj.io/tracking-id": "vision:lathe.dev/OptimizedModel:patterns"})
    assert "note: Argo CD manages patterns and may set it back" in user.lathe("rollback", "patterns").stdout


def test_parts_that_stay_must_fit_the_earlier_recipe(user):
    first = user.apply(spec())
    document = dynamic()
    document["recipe"]["stages"] = [{**DYNAMIC, "name": "eight"}, EXPORT]
    document["search"] = {
        "choices": [{"stage": "eight", "field": "quantize.method", "values": ["Dynamic", "Static"]}],
        "goals": [{"metric": "sizeRatio"}],
    }
    user.apply(document)
    done = user.lathe("rollback", "patterns", "--to", first)
    assert done.returncode == 1
    assert f"what {first} was made of does not fit the rest of the spec now" in done.stderr
    assert "search.choices[0].stage" in done.stderr
    assert user.model()["spec"]["recipe"]["stages"][0]["name"] == "eight"


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        pytest.param(["rollback", "nobody"], 2, '"nobody" not found', id="no such model"),
        pytest.param(["rollback", "patterns"], 2, "has no other revision that was built", id="first revision"),
        pytest.param(["rollback", "patterns", "--to", "ffffff"], 2, "no ModelRevision is called", id="no hash"),
        pytest.param(["diff", "one", "two"], 2, "no ModelRevision is called 'one'. There are: patterns-", id="diff"),
        pytest.param(["rollback", "patterns", "--context", "mars"], 1, "mars", id="no such context"),
    ],
)
def test_what_does_not_exist_is_named(user, arguments, status, told):
    user.apply(spec())
    done = user.lathe(*arguments)
    assert done.returncode == status
    assert told in done.stderr
    assert done.stderr.startswith("error: ")


def test_kubectl_must_be_there(user, tmp_path):
    done = user.lathe("rollback", "patterns", path=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: kubectl is not on the PATH. Install it, or add its folder to PATH\n"


def test_two_revisions_are_told_apart(user):
    first = user.apply(spec())
    second = user.apply(dynamic())
    done = user.lathe("diff", first, second.rpartition("-")[2])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{first} -> {second}"
    assert "  stages[int8].quantize.method: Static -> Dynamic" in lines
    assert f"  stages[int8].resources.memory: {STATIC['resources']['memory']} -> nothing" in lines
    assert "  targets[cpu].serving.replicas.min: 1 -> 3" in lines
    table = [line.split() for line in lines[-3:]]
    assert table[0] == ["target", "state", "quality", "drop", "size", "speed"]
    assert table[1][:3] == [first, "cpu", "Built"]
    assert table[2][:3] == [second, "cpu", "Built"]
    assert lines[-2].split()[3:] == lines[-1].split()[3:]
