"""`lathe serve` as a user types it: a real server, asked over both protocols, stopped by a signal."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from support.servers import fill_repository

from lathe_runtimes.modelconfig import Profile

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_repository_is_served_until_a_signal_ends_it(tmp_path, number):
    repository = fill_repository(tmp_path / "repository", tmp_path, Profile.ONNXRUNTIME, ["mlp"])
    command = [sys.executable, "-m", "lathe_cli.main", "serve", str(repository)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        printed = []
        while not printed or "Ctrl-C" not in printed[-1]:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            printed.append(line)
        text = "".join(printed)
        addresses = dict(re.findall(r"^  (http|grpc)  (\S+)$", text, re.MULTILINE))
        for library, address in ((tritonclient.http, addresses["http"]), (tritonclient.grpc, addresses["grpc"])):
            with library.InferenceServerClient(address) as client:
                assert client.is_model_ready("mlp")
        program = text[text.index("import numpy") : text.index("Ctrl-C")]
        answer = {}
        exec(compile(program, "printed", "exec"), answer)  # noqa: S102 - it is meant to be pasted and run
        answer["client"].close()
        assert np.isfinite(answer["answer"].as_numpy(answer["answer"].get_response()["outputs"][0]["name"])).all()
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    with pytest.raises(ConnectionRefusedError), tritonclient.http.InferenceServerClient(addresses["http"]) as client:
        client.is_server_live()
