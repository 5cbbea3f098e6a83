"""Serve a finished run, ask it 200 times by Triton's own client, and check every answer against ONNX Runtime.

The server keeps running afterwards; `RUN_SECONDS=n` ends it after n seconds.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from lathe_runtimes.launch import start_lathe

REQUESTS = 100
TOLERANCE = 1e-4


def main() -> int:
    """Exit status 0 when every answer is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder that `lathe run` wrote")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "build" / "test.npz")
    options = parser.parse_args()

    summary = json.loads((options.run / "summary.json").read_text())
    target = next(t for t in summary["targets"] if t["state"] == "Built")
    name = summary["name"]
    with np.load(options.data) as test:
        images, classes = test["x"][:REQUESTS], test["y"][:REQUESTS]
    session = onnxruntime.InferenceSession(options.run / target["modelFile"], providers=["CPUExecutionProvider"])
    expected = [session.run(None, {"image": image[None]})[0] for image in images]

    with start_lathe(options.run / target["repository"]) as server:
        server.wait_ready()
        wrong = 0
        for module, address in ((triton_http, server.http), (triton_grpc, server.grpc)):
            answers = ask(module, address, name, images)
            wrong += sum(not np.allclose(a, e, atol=TOLERANCE) for a, e in zip(answers, expected, strict=True))
            right = np.mean([a.argmax() == c for a, c in zip(answers, classes, strict=True)])
            print(f"{module.__name__:18} {len(answers)} requests to {address}, {right:.1%} of the classes right")
        print(f"{2 * REQUESTS - wrong} of {2 * REQUESTS} answers equal ONNX Runtime's")
        overall = target["overall"]
        print(
            f"{name}: accuracy {overall['original']:.2%} -> {overall['final']:.2%}, "
            f"{overall['sizeRatio']:.1f}x smaller, {overall['latency']['value']:.1f}x faster, "
            f"artifact {target['artifact'][:19]}"
        )
        if wrong:
            return 1
        print(f"serving {name}: http://{server.http}  grpc://{server.grpc}  (Ctrl-C ends it)", flush=True)
        wait(os.environ.get("RUN_SECONDS"))
    return 0


def ask(module: object, address: str, name: str, images: np.ndarray) -> list[np.ndarray]:
    """One request per image; the answers in order."""
    client = module.InferenceServerClient(address)
    answers = []
    for image in images:
        tensor = module.InferInput("image", [1, *image.shape], "FP32")
        tensor.set_data_from_numpy(image[None])
        answers.append(client.infer(name, [tensor]).as_numpy("output"))
    client.close()
    return answers


def wait(seconds: str | None) -> None:
    """Until Ctrl-C, SIGTERM, or the given time is over."""
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    if seconds:
        signal.sigtimedwait(ends, float(seconds))
    else:
        signal.sigwait(ends)


if __name__ == "__main__":
    sys.exit(main())
