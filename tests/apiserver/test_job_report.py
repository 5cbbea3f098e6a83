"""What a Job's pod tells a real API server of its revision, as the account that it has, and when that is away."""

import hashlib
import json
import select
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.eventually import eventually
from support.jobs import EXPORT, MEMORY, STATIC, Pod, make_pod, revision_of, spec, with_kinds

from devcluster.controlplane import Cluster, KubectlError
from lathe_api.modelrevision import ModelRevisionStatus
from lathe_operator.plan.objects.records import identity
from lathe_operator.plan.segments import is_done, segments
from lathe_runtimes.repository import read_repository

pytestmark = pytest.mark.e2e
Json = dict[str, Any]


@pytest.fixture(scope="module")
def lathe_kinds(control_plane: Cluster) -> Cluster:
    """A cluster that knows Lathe's kinds."""
    return with_kinds(control_plane)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes whose store has every stage of `support.jobs.spec` done, so that a test has to do only its own."""
    pod = make_pod(tmp_path_factory.mktemp("template"))
    pod.give(revision_of(spec(), "nowhere"))
    for segment in (0, 1):
        done = pod.run(segment)
        assert done.returncode == 0, done.stderr
    return pod.folder


@pytest.fixture
def pod(template: Path, tmp_path: Path) -> Iterator[Pod]:
    shutil.copytree(template / "volumes", tmp_path / "volumes")
    found = Pod(tmp_path)
    yield found
    found.end()


@pytest.fixture
def submit(lathe_kinds: Cluster, namespace: str, pod: Pod) -> Callable[..., str]:
    """Puts a revision into the cluster with its account, and mounts both; gives its name."""

    def submit(document: Json, *, host: str | None = None, port: int = 6443, orphan: bool = False) -> str:
        wanted = revision_of(document, namespace)
        lathe_kinds.apply(wanted, manager="lathe-operator")
        name: str = wanted["metadata"]["name"]
        made = revision(lathe_kinds, namespace, name)
        objects = identity(made, None)
        if orphan:
            for obj in objects:
                del obj["metadata"]["ownerReferences"]
        lathe_kinds.apply(*objects, manager="lathe-operator")
        token = lathe_kinds.kubectl("-n", namespace, "create", "token", name).strip()
        pod.give(made)
        pod.account(token, lathe_kinds.ca, host or lathe_kinds.network.address, port)
        return name

    return submit


@pytest.fixture
def gate(lathe_kinds: Cluster) -> Iterator["Gate"]:
    """A way to the API server that can be closed."""
    found = Gate(lathe_kinds.network.address, 6443)
    yield found
    found.end()


class Gate:
    """Passes bytes between a port of this machine and a server; closed, it drops every connection."""

    def __init__(self, host: str, port: int) -> None:
        self.open = False
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.refused = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def end(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.open:
                    threading.Thread(target=self._pass, args=(client,), daemon=True).start()
                else:
                    self.refused += 1
                    client.close()

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server, suppress(OSError):
            others = {client: server, server: client}
            while True:
                for ready in select.select(list(others), [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    others[ready].sendall(data)


def revision(cluster: Cluster, namespace: str, name: str) -> Json:
    return cluster.get("-n", namespace, "modelrevision", name, "--show-managed-fields")


def status(cluster: Cluster, namespace: str, name: str) -> Json:
    found: Json = revision(cluster, namespace, name).get("status", {})
    ModelRevisionStatus.model_validate(found, by_alias=True, by_name=False)
    return found


def owned(found: Json, manager: str) -> set[str]:
    """Names of the stages whose entries a field manager owns."""
    fields = [f["fieldsV1"] for f in found["metadata"]["managedFields"] if f["manager"] == manager]
    keys = [k for f in fields for k in f.get("f:status", {}).get("f:stages", {})]
    return {json.loads(k.removeprefix("k:"))["name"] for k in keys if k.startswith("k:")}


def empty(pod: Pod) -> None:
    """Forget all results, so that the stages take their time."""
    shutil.rmtree(pod.store)
    pod.store.mkdir()


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def renamed(name: str) -> Json:
    """The same work under another revision: a stage's name does not decide its result."""
    document = spec()
    document["recipe"]["stages"] = [{**STATIC, "name": name}, EXPORT]
    return document


def test_two_jobs_report_a_whole_revision(lathe_kinds, namespace, pod, submit):
    name = submit(spec())
    first, second = segments(revision_stages(spec()), "Onnx")
    done = pod.run(0, "--until", first.stages[-1])
    assert done.returncode == 0, done.stderr
    between = revision(lathe_kinds, namespace, name)
    assert is_done(first, between)
    assert not is_done(second, between)
    assert "finishedAt" not in between["status"]
    assert {i["field"]: i["digest"] for i in between["status"]["inputs"]} == {
        "model": sha256(pod.files / "model.onnx"),
        "data.train": sha256(pod.files / "train.npz"),
        "data.evaluation": sha256(pod.files / "test.npz"),
    }
    assert {i["uri"] for i in between["status"]["inputs"]} == {
        f"pvc://lathe-files/{f}" for f in ("model.onnx", "train.npz", "test.npz")
    }

    done = pod.run(1)
    assert done.returncode == 0, done.stderr
    end = revision(lathe_kinds, namespace, name)
    found = status(lathe_kinds, namespace, name)
    assert is_done(second, end)
    assert owned(end, "lathe-job-0") == {"import", "int8"}
    assert owned(end, "lathe-job-1") == {"onnx"}
    assert [(s["name"], s["state"], s["percent"], s["job"]) for s in found["stages"]] == [
        ("import", "Cached", 100, f"{name}-0"),
        ("int8", "Cached", 100, f"{name}-0"),
        ("onnx", "Cached", 100, f"{name}-1"),
    ]
    assert all(float(s["quality"]) > 0.9 for s in found["stages"])
    assert found["inputs"] == between["status"]["inputs"]
    assert found["verdict"] == "Passed"
    assert [g["name"] for g in found["gates"]] == ["cpu.onnx.accuracy"]
    assert found["gates"][0]["verdict"] == "Passed"
    assert found["startedAt"] <= found["finishedAt"]
    assert found["report"] == f"pvc://lathe-store/kept/reports/{name}/report.html"
    assert (pod.store / "reports" / name / "report.html").stat().st_size > 1000
    (target,) = found["targets"]
    assert target["state"] == "Built"
    assert target["repository"] == f"pvc://lathe-store/kept/repositories/{name}/cpu"
    (model,) = read_repository(pod.store / "repositories" / name / "cpu")
    assert model.config.name == "patterns"
    assert model.digest == target["artifact"] == sha256(model.folder / "1" / "model.onnx")
    original, made = (pod.files / "model.onnx").stat().st_size, (model.folder / "1" / "model.onnx").stat().st_size
    assert 0 < float(target["sizeRatio"]) < 2 * original / made
    assert float(target["latencyRatio"]) > 0
    assert float(target["originalQuality"]) - float(target["quality"]) == pytest.approx(float(target["qualityDrop"]))


def test_a_stage_that_differs_by_hardware_is_reported_for_each_target(lathe_kinds, namespace, pod, submit):
    document = spec()
    document["targets"] = [
        {"name": "plain", "hardware": "X86Avx2"},
        {"name": "fast", "hardware": "X86Vnni"},
        {"name": "gpu", "hardware": "Cuda"},
    ]
    document["gates"] = [{"name": "size", "metric": "sizeRatio", "min": "2"}]
    name = submit(document)
    first, last = segments(revision_stages(document), "Onnx")
    assert pod.run(0).returncode == 0
    between = revision(lathe_kinds, namespace, name)
    assert owned(between, "lathe-job-0") == {"import", "plain.int8", "fast.int8"}
    assert is_done(first, between)
    assert pod.run(1).returncode == 0
    end = revision(lathe_kinds, namespace, name)
    assert owned(end, "lathe-job-1") == {"plain.onnx", "fast.onnx"}
    assert is_done(last, end)
    found = status(lathe_kinds, namespace, name)
    states = {t["name"]: (t["state"], "repository" in t) for t in found["targets"]}
    assert states == {"plain": ("Built", True), "fast": ("Built", True), "gpu": ("Skipped", False)}
    assert sorted(g["name"] for g in found["gates"]) == ["fast.onnx.size", "plain.onnx.size"]
    assert next(t["message"] for t in found["targets"] if t["name"] == "gpu").startswith("artifacts for Cuda")


def test_progress_is_seen_while_a_stage_runs(lathe_kinds, namespace, pod, submit):
    empty(pod)
    name = submit(spec())
    process = pod.start(0)
    seen: list[Json] = []

    def look() -> bool:
        for stage in status(lathe_kinds, namespace, name).get("stages", []):
            if stage not in seen:
                seen.append(stage)
        return process.poll() is not None

    eventually(look, within=120)
    out, err = process.communicate()
    assert process.returncode == 0, err
    stages = [s for s in seen if s["name"] == "int8"]
    assert [s["state"] for s in stages] == ["Running"] * (len(stages) - 1) + ["Succeeded"]
    assert [s["percent"] for s in stages] == sorted(s["percent"] for s in stages)
    assert "Running" in {s["state"] for s in seen}
    assert "nothing is reported" not in out


def test_its_account_may_write_the_status_of_its_revision_and_nothing_else(lathe_kinds, namespace, submit):
    name = submit(spec())
    other = submit(renamed("eight"))
    account = lathe_kinds.account(namespace, name)
    may = {
        verb: lathe_kinds.kubectl("-n", namespace, *arguments, kubeconfig=account).strip() == "yes"
        for verb, arguments in {
            "own status": ("auth", "can-i", "patch", f"modelrevisions.lathe.dev/{name}", "--subresource=status"),
        }.items()
    }
    assert may == {"own status": True}
    for arguments in (
        ("patch", "modelrevision", name, "--type=merge", "-p", '{"metadata": {"labels": {"a": "b"}}}'),
        ("patch", "modelrevision", other, "--subresource=status", "--type=merge", "-p", '{"status": {"summary": "x"}}'),
        ("get", "secrets"),
        ("delete", "modelrevision", name),
    ):
        with pytest.raises(KubectlError, match="forbidden"):
            lathe_kinds.kubectl("-n", namespace, *arguments, kubeconfig=account)


def test_gates_that_stop_every_target_end_the_revision_in_an_earlier_job(lathe_kinds, namespace, pod, submit):
    document = spec()
    document["gates"] = [{"name": "size", "metric": "sizeRatio", "min": "50", "stages": ["int8"]}]
    name = submit(document)
    done = pod.run(0)
    assert done.returncode == 0, done.stderr
    found = status(lathe_kinds, namespace, name)
    assert found["verdict"] == "Failed"
    assert found["finishedAt"]
    assert [(g["name"], g["verdict"]) for g in found["gates"]] == [("cpu.int8.size", "Failed")]
    assert float(found["gates"][0]["value"]) < 50
    (target,) = found["targets"]
    assert target["state"] == "Refused"
    assert "artifact" not in target
    assert "repository" not in target
    assert "gate size after stage int8: Failed. Try: " in target["message"]
    assert not (pod.store / "repositories" / name).exists()
    assert [s["name"] for s in found["stages"]] == ["import", "int8"]
    assert pod.reason == ""


def test_bad_input_is_permanent_and_told_in_the_words_of_the_document(lathe_kinds, namespace, pod, submit):
    (pod.files / "train.npz").unlink()
    name = submit(spec())
    done = pod.run(0)
    assert done.returncode == 2
    wanted = "spec.data.train.uri: there is nothing at pvc://lathe-files/train.npz. Write the path of an existing file"
    assert pod.reason == wanted
    assert "finishedAt" not in status(lathe_kinds, namespace, name)


def test_a_stage_that_fails_is_told_where_it_failed(lathe_kinds, namespace, pod, submit):
    document = spec()
    document["recipe"]["stages"] = [{**STATIC, "resources": {"memory": "16Mi"}}, EXPORT]
    empty(pod)
    name = submit(document)
    done = pod.run(0)
    assert done.returncode == 137
    assert "MiB of memory, its limit is 16 MiB. Raise the stage's `resources.memory`" in pod.reason
    stages = {s["name"]: s for s in status(lathe_kinds, namespace, name)["stages"]}
    assert stages["import"]["state"] == "Succeeded"
    assert stages["int8"]["state"] == "Failed"
    assert stages["int8"]["message"] in pod.reason

    document["recipe"]["stages"] = [STATIC, EXPORT]
    assert MEMORY in json.dumps(document)
    again = submit(document)
    assert again != name
    assert pod.run(0).returncode == 0
    stages = {s["name"]: s["state"] for s in status(lathe_kinds, namespace, again)["stages"]}
    assert stages == {"import": "Cached", "int8": "Succeeded"}


def test_the_work_goes_on_while_the_api_server_is_away(lathe_kinds, namespace, pod, submit, gate):
    name = submit(spec(), host="127.0.0.1", port=gate.port)
    process = pod.start(0)
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("segment 0 is done"):
            break
    assert process.poll() is None
    eventually(lambda: gate.refused > 1)
    assert not status(lathe_kinds, namespace, name)
    gate.open = True
    assert process.wait(60) == 0
    process.communicate()
    assert sum("the work goes on, and reports are tried again" in line for line in lines) <= 1
    found = status(lathe_kinds, namespace, name)
    assert [s["name"] for s in found["stages"]] == ["import", "int8"]


def test_a_job_whose_revision_is_deleted_stops(lathe_kinds, namespace, pod, submit):
    empty(pod)
    # Else its account may go before it notices; Kubernetes then ends the pod itself.
    name = submit(spec(), orphan=True)
    process = pod.start(0)
    eventually(lambda: status(lathe_kinds, namespace, name).get("stages"))
    process.send_signal(signal.SIGSTOP)  # so that it cannot be done before the deletion is
    lathe_kinds.kubectl("-n", namespace, "delete", "modelrevision", name)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"ModelRevision {name} has been deleted" in pod.reason
    # Another one of the same name is not the one that this Job works for.
    submit(spec(), orphan=True)
    empty(pod)
    process = pod.start(0)
    eventually(lambda: status(lathe_kinds, namespace, name).get("stages"))
    process.send_signal(signal.SIGSTOP)
    lathe_kinds.kubectl("-n", namespace, "delete", "modelrevision", name)
    lathe_kinds.apply(revision_of(spec(), namespace), manager="lathe-operator")
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert "another one of this name been made" in pod.reason


def test_kubernetes_may_stop_it_at_any_time(lathe_kinds, namespace, pod, submit):
    empty(pod)
    name = submit(spec())
    process = pod.start(0)
    assert process.stdout is not None
    assert any(line.startswith("int8: started") for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert "finished stages are kept" in pod.reason
    assert pod.run(0).returncode == 0
    found = {s["name"]: s["state"] for s in status(lathe_kinds, namespace, name)["stages"]}
    assert found == {"import": "Cached", "int8": "Succeeded"}


def revision_stages(document: Json) -> Any:
    from lathe_api.modelrevision import ModelRevisionSpec

    value = revision_of(document, "nowhere")["spec"]
    return ModelRevisionSpec.model_validate(value, by_alias=True, by_name=False).stages
