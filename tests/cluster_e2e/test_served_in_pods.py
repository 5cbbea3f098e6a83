"""`kubectl apply` to answers: real Jobs, real servers, real pods, and clients that know nothing of Lathe."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.eventually import eventually

from lathe_api.wiring import GRPC_PORT

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits"
NAMESPACE = "vision"
# Other tests may have the second core.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture(scope="session")
def inputs(files):
    """The example's model and data where the documents' relative paths start from."""
    if not (EXAMPLE / "build" / "teacher.pt2").exists():
        subprocess.run([sys.executable, EXAMPLE / "train.py"], check=True)
    shutil.copytree(EXAMPLE / "build", files / "build")
    return files / "build"


def document(name, **changes):
    """The example under another name, with other parts of its spec."""
    found = yaml.safe_load((EXAMPLE / "model.yaml").read_text())
    found["metadata"] = {"name": name, "namespace": NAMESPACE}
    found["spec"] |= changes
    return found


SHORT = {
    "recipe": {
        "stages": [{"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}],
    },
    "gates": [
        {"name": "accuracy", "metric": "accuracy", "maxDrop": "0.05"},
        {"name": "size", "metric": "sizeRatio", "min": "3"},
    ],
    "rollout": {"strategy": "BlueGreen"},
}


def target(runtime):
    serving = {"runtime": runtime, "mode": "DynamicBatch", "batch": {"maxSize": 32, "maxQueueDelay": "2ms"}}
    return [{"name": "cpu", "hardware": "X86Vnni", "pool": {"nodeSelector": {"pool": "cpu"}}, "serving": serving}]


class Model:
    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name

    @property
    def object(self):
        return self.cluster.get("om", self.name, "-n", NAMESPACE)

    def ready(self, within):
        """Wait until it is; the history of the one column is in the message when it does not become so."""
        seen = []

        def check():
            status = self.object.get("status", {})
            if status.get("summary") not in seen[-1:]:
                seen.append(status.get("summary"))
            ready = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), {})
            assert ready.get("status") == "True", f"{' > '.join(map(str, seen))}: {ready.get('message')}"
            return status

        return eventually(check, within=within)

    def address(self):
        """IP address of its Service."""
        found = self.cluster.get("service", f"{self.name}-cpu", "-n", NAMESPACE)
        return found["spec"]["clusterIP"]

    def inference_services(self):
        return self.cluster.get("isvc", "-n", NAMESPACE, "-l", f"lathe.dev/model={self.name}")["items"]

    def artifact(self, files):
        """The ONNX file that its repository holds."""
        uri = self.object["status"]["targets"][0]["repository"]
        (found,) = (files.parent / "lathe-store" / uri.split("/", 3)[3]).rglob("*.onnx")
        return found


def answers_by_http(model, images):
    import tritonclient.http as client

    with client.InferenceServerClient(f"{model.address()}:80") as server:
        tensor = client.InferInput("image", images.shape, "FP32")
        tensor.set_data_from_numpy(images)
        config = server.get_model_config(model.name)
        output = config["output"][0]["name"]
        digest = config["parameters"]["lathe.digest"]["string_value"]
        return server.infer(model.name, [tensor]).as_numpy(output), digest


def answers_by_grpc(model, images):
    import tritonclient.grpc as client

    with client.InferenceServerClient(f"{model.address()}:{GRPC_PORT}") as server:
        tensor = client.InferInput("image", images.shape, "FP32")
        tensor.set_data_from_numpy(images)
        output = server.get_model_metadata(model.name).outputs[0].name
        return server.infer(model.name, [tensor]).as_numpy(output)


def expected(artifact, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.fixture(scope="session", params=["Lathe", "Triton"])
def served(lathe, inputs, request):
    """A model of the example's data, quantised only, behind each of the servers."""
    model = Model(lathe, f"digits-{request.param.lower()}")
    lathe.apply(document(model.name, targets=target(request.param), **SHORT), manager="kubectl")
    model.ready(within=480)
    return model


def test_clients_get_what_the_artifact_answers(served, inputs, files):
    images = np.load(inputs / "test.npz")["x"][:16].astype(np.float32)
    wanted = expected(served.artifact(files), images)
    by_http, digest = answers_by_http(served, images)
    np.testing.assert_allclose(by_http, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(answers_by_grpc(served, images), wanted, rtol=1e-4, atol=1e-4)
    (status,) = served.object["status"]["targets"]
    assert digest == status["artifact"] == status["serving"]


def test_kserves_own_client_sees_it_ready(served):
    (service,) = served.inference_services()
    # In a process of its own: its messages and those of Triton's client claim the same names.
    script = (
        "import sys; from kserve import KServeClient; "
        "sys.exit(not KServeClient(config_file=sys.argv[1]).is_isvc_ready(sys.argv[2], namespace=sys.argv[3]))"
    )
    arguments = (str(served.cluster.kubeconfig), service["metadata"]["name"], NAMESPACE)
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_artifact_that_is_swapped_under_the_server_is_noticed(served, files):
    """Somebody puts another model into the repository, as well-formed as ours, and the server starts anew."""
    import onnx

    artifact = served.artifact(files)
    promised = served.object["status"]["targets"][0]["artifact"]
    other = onnx.load(artifact)
    other.doc_string = "another"
    artifact.chmod(0o644)
    onnx.save(other, artifact)
    config = artifact.parents[1] / "config.pbtxt"
    config.chmod(0o644)
    swapped = f"sha256:{hashlib.sha256(artifact.read_bytes()).hexdigest()}"
    config.write_text(config.read_text().replace(promised, swapped))
    (service,) = served.inference_services()
    selector = f"serving.kserve.io/inferenceservice={service['metadata']['name']}"
    served.cluster.kubectl("-n", NAMESPACE, "delete", "pod", "-l", selector, "--wait=false")

    def noticed():
        conditions = {c["type"]: c for c in served.object["status"]["conditions"]}
        assert conditions["RolledOut"]["reason"] == "WrongArtifact", conditions["RolledOut"]
        assert conditions["Ready"]["status"] == "False"
        return swapped in conditions["RolledOut"]["message"]

    assert eventually(noticed, within=120)


@pytest.mark.whole
@pytest.mark.timeout(1800)
def test_the_example_as_it_stands_goes_through_all_its_stages(lathe, inputs, files):
    lathe.kubectl("-n", NAMESPACE, "apply", "-f", str(EXAMPLE / "model.yaml"))
    model = Model(lathe, "digits")
    status = model.ready(within=1500)
    assert status["columns"]["size"]
    images = np.load(inputs / "test.npz")["x"][:16].astype(np.float32)
    by_http, _ = answers_by_http(model, images)
    np.testing.assert_allclose(by_http, expected(model.artifact(files), images), rtol=1e-4, atol=1e-4)
    revision = lathe.get("mrev", status["observedRevision"], "-n", NAMESPACE)
    assert json.dumps(revision["status"]["gates"]).count("Passed") >= 3
