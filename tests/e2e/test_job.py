"""`lathe job` as a pod runs it: any user, any end, whatever it is given."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.eventually import eventually
from support.jobs import EXPORT, STATIC, Pod, make_classifier, make_pod, revision_of, spec

from lathe_optimizers.runner import resident_bytes
from lathe_runtimes.repository import read_repository

pytestmark = pytest.mark.e2e
CONTROL_GROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes whose store has every stage of `support.jobs.spec` done."""
    pod = make_pod(tmp_path_factory.mktemp("template"))
    pod.give(revision_of(spec(), "vision"))
    for segment in (0, 1):
        assert pod.run(segment).returncode == 0
    return pod.folder


@pytest.fixture
def pod(template: Path, tmp_path: Path) -> Iterator[Pod]:
    shutil.copytree(template / "volumes", tmp_path / "volumes")
    found = Pod(tmp_path)
    found.give(revision_of(spec(), "vision"))
    yield found
    found.end()


def empty(pod):
    shutil.rmtree(pod.store)
    pod.store.mkdir()


def test_by_hand_it_prints_progress_and_says_that_nothing_is_reported(pod):
    done = pod.run(1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("note: this is no pod of a cluster: progress is printed, and nothing is reported\n")
    assert "3 cached" in done.stdout
    assert "\npvc://lathe-store/kept/repositories/patterns-" in done.stdout
    assert str(pod.volumes) not in done.stdout
    assert str(pod.scratch) not in done.stdout


def test_the_user_of_a_container_has_no_name(pod):
    """As Kubernetes starts it: a user id that no file of the image knows."""
    empty(pod)
    pod.before = ("unshare", "--user", "--map-user=65532", "--map-group=65532")
    if subprocess.run([*pod.before, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces")
    for segment in (0, 1):
        done = pod.run(segment)
        assert done.returncode == 0, done.stderr
    assert list(pod.store.glob("repositories/*/cpu/patterns/1/model.onnx"))


def test_a_command_needs_no_home():
    environment = {"PATH": os.environ["PATH"]}
    command = ["unshare", "--user", "--map-user=65532", sys.executable, "-m", "lathe_cli.main", "version"]
    if subprocess.run([*command[:3], "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces")
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_onnx_model_needs_no_torch(pod, tmp_path):
    """As in the image without it, which the operator chooses for such a model."""
    empty(pod)
    folder = tmp_path / "site"
    folder.mkdir()
    names = ("torch", "torchao", "onnxscript", "kopf", "kubernetes", "rich", "prometheus_client")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({names!r}))\n")
    pod.environment["PYTHONPATH"] = str(folder)
    for segment in (0, 1):
        done = pod.run(segment)
        assert done.returncode == 0, done.stderr
    assert list(pod.store.glob("repositories/*/cpu/patterns/1/model.onnx"))


def test_targets_of_several_kinds_each_get_their_repository(pod):
    document = spec()
    document["targets"] = [
        {"name": "plain", "hardware": "X86Avx2"},
        {"name": "fast", "hardware": "X86Vnni", "serving": {"runtime": "Triton", "mode": "DynamicBatch"}},
        {"name": "phone", "hardware": "Arm64"},
    ]
    pod.environment["LATHE_TRITON_BACKEND"] = "python"
    revision = revision_of(document, "vision")
    pod.give(revision)
    for segment in (0, 1):
        done = pod.run(segment)
        assert done.returncode == 0, done.stderr
    place = pod.store / "repositories" / revision["metadata"]["name"]
    assert sorted(p.name for p in place.iterdir()) == ["fast", "plain"]
    (plain,), (fast,) = read_repository(place / "plain"), read_repository(place / "fast")
    assert plain.config.platform == "onnxruntime_onnx"
    assert plain.config.max_batch_size == 0
    assert fast.config.backend == "python"
    assert fast.config.max_batch_size == 32
    assert "target phone is skipped: Arm64 artifacts do not run on" in done.stdout


def test_a_repository_is_replaced_as_a_whole(pod):
    """Another try of a Job finds what the one before left, whole or not."""
    name = json.loads((pod.folder / "revision.json").read_text())["metadata"]["name"]
    model = pod.store / "repositories" / name / "cpu" / "patterns"
    before = (model / "1" / "model.onnx").read_bytes()
    (model / "1" / "model.onnx").write_bytes(b"half")
    (model / "config.pbtxt").unlink()
    assert pod.run(1).returncode == 0
    assert (model / "1" / "model.onnx").read_bytes() == before
    assert [p.name for p in model.parent.iterdir()] == ["patterns"]


def revision_with(**changes):
    def change(value):
        value["spec"] |= changes
        return value

    return change


def without_store(value):
    del value["spec"]["store"]["uri"]
    return value


@pytest.mark.parametrize(
    ("change", "arguments", "told"),
    [
        pytest.param(None, ["7"], "--segment: 7. The stages make 2 segments: write 0 to 1", id="segment"),
        pytest.param(None, ["0", "--until", "onnx"], "--until: 'onnx' is no stage of this segment", id="until"),
        pytest.param(
            lambda _: {"kind": "Pod"},
            ["0"],
            "revision.json: kind: found nothing; write ModelRevision",
            id="another kind",
        ),
        pytest.param(without_store, ["0"], "spec.store.uri: the revision names no store", id="no store"),
        pytest.param(
            revision_with(store={"uri": "pvc://a/../b"}), ["0"], "pvc://a/../b names no place in a volume", id="escape"
        ),
        pytest.param(revision_with(seed="x"), ["0"], "spec.seed", id="field"),
        pytest.param(
            lambda value: value["spec"]["model"].update(digest="sha256:" + "0" * 64) or value,
            ["0"],
            "spec.model.digest: pvc://lathe-files/model.onnx has sha256:",
            id="digest",
        ),
    ],
)
def test_bad_input_ends_with_2_and_a_reason(pod, change, arguments, told):
    value = json.loads((pod.folder / "revision.json").read_text())
    (pod.folder / "revision.json").write_text(json.dumps(change(value) if change else value))
    done = pod.run(*arguments)
    assert done.returncode == 2, done.stderr
    assert told in pod.reason
    assert "Traceback" not in done.stderr


def test_an_unknown_backend_is_refused(pod):
    pod.environment["LATHE_TRITON_BACKEND"] = "tensorrt"
    assert pod.run(1).returncode == 2
    assert pod.reason == "LATHE_TRITON_BACKEND: 'tensorrt'. Write one of onnxruntime, python"


def test_a_full_or_missing_volume_is_tried_again(pod):
    shutil.rmtree(pod.volumes / "lathe-store")
    (pod.volumes / "lathe-store").touch()
    done = pod.run(0)
    assert done.returncode == 1
    assert "pvc://lathe-store/kept" in pod.reason
    assert "not writable" in pod.reason


def test_a_pod_that_is_killed_loses_no_finished_stage(pod):
    empty(pod)
    process = pod.start(0)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("int8: started"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert process.returncode == -signal.SIGKILL
    done = pod.run(0)
    assert done.returncode == 0, done.stderr
    assert "\nimport: cached" in done.stdout
    assert "\nint8: started" in done.stdout


def test_the_supervisor_leaves_the_memory_to_the_stage(pod):
    """The data is read before a stage begins, and not held while it works."""
    empty(pod)
    samples = 200_000
    x = np.zeros((samples, 1, 16, 16), np.float32)
    np.savez(pod.files / "train.npz", x=x, y=np.arange(samples) % 10)
    process = pod.start(0)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("import: started"):
            break
    own = resident_bytes(process.pid)
    assert 0 < own < x.nbytes
    process.terminate()
    process.communicate(timeout=30)


@pytest.fixture
def container() -> Iterator[Path]:
    """A control group that allows 300 MiB, and nothing more by swapping."""
    name = f"lathe-{uuid.uuid4().hex}"
    second = (CONTROL_GROUPS / "cgroup.controllers").exists()
    group = CONTROL_GROUPS / name if second else CONTROL_GROUPS / "memory" / name
    limits = ("memory.max", "memory.swap.max") if second else ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    try:
        for limit, size in zip(limits, (300 << 20, 0 if second else 300 << 20), strict=True):
            if (group / limit).exists():
                (group / limit).write_text(str(size))
        yield group
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_stage_that_the_kernel_ends_is_explained_with_the_limit(pod, container, tmp_path):
    """The container's limit is reached before the stage's own, which is higher here."""
    empty(pod)
    make_classifier(pod.files / "model.onnx", hidden=150_000)
    document = spec()
    document["recipe"]["stages"] = [{**STATIC, "resources": {"memory": "100Gi"}}, EXPORT]
    pod.give(revision_of(document, "vision"))
    # The import has no limit of its own, so that it would stop at its share of the container's memory by itself.
    outside = pod.start(0)
    assert outside.stdout is not None
    for line in outside.stdout:
        if line.startswith("int8: started"):
            break
    outside.kill()
    outside.communicate(timeout=30)
    seen = tmp_path / "cgroup"
    seen.mkdir()
    if container.parent == CONTROL_GROUPS:
        seen = container
    else:
        (seen / "memory").symlink_to(container)
    script = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        Path({str(container / "cgroup.procs")!r}).write_text(str(os.getpid()))
        from lathe_optimizers import memory
        memory.CONTROL_GROUP = Path({str(seen)!r})
        from lathe_cli.main import main
        sys.exit(main(["job", {str(pod.folder / "revision.json")!r}, "--segment", "0"]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, env=pod.variables, timeout=300
    )
    assert done.returncode == 137, done.stdout + done.stderr
    assert "import: cached" in done.stdout
    assert "because the container reached its limit of 300 MiB of memory. Raise the stage's `resources.memory`" in (
        pod.reason
    )


def test_a_search_is_done_by_one_job_and_goes_on_in_the_next_pod(tmp_path):
    searched = make_pod(tmp_path / "pod")
    document = spec() | {
        "search": {
            "choices": [{"stage": "int8", "field": "quantize.method", "values": ["Static", "WeightOnly8", "Float16"]}],
            "goals": [{"metric": "sizeRatio"}],
            "sampler": "Grid",
        }
    }
    searched.give(revision_of(document, "vision"))
    try:
        process = searched.start(0)
        for line in process.stdout:
            if line.startswith("trial 2/"):
                process.kill()
                break
        process.communicate(timeout=60)
        done = searched.run(0)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "the search goes on after 1 trial of an earlier run" in done.stdout
        assert "trial 1/" not in done.stdout
        assert "pvc://lathe-store/kept/repositories/patterns-" in done.stdout
    finally:
        searched.end()
