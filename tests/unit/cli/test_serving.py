"""`lathe serve` and `lathe run --serve`: what is served, what is refused before a server starts, how it ends."""

import argparse
import json
import signal
import subprocess

import pytest
from support import summaries
from support.records import stage_record

from lathe_api.manifest import Blob
from lathe_api.summary import TargetState
from lathe_api.targets import Hardware, Serving, ServingMode
from lathe_cli import main, serve
from lathe_runtimes.modelconfig import Profile
from lathe_runtimes.repository import read_repository, write_repository


class FakeServer:
    """A server that is ready at once; `end` says how its process ends."""

    def __init__(self, end):
        self.name, self.http, self.grpc = "the server", "127.0.0.1:1", "127.0.0.1:2"
        self.end, self.stopped, self.process, self.limit = end, False, self, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped = True

    def wait_ready(self, timeout):
        assert timeout > 0

    def wait(self, limit):
        self.limit = limit
        return self.end()


def time_over():
    raise subprocess.TimeoutExpired("server", 1)


def terminated():
    signal.raise_signal(signal.SIGTERM)
    raise AssertionError("the signal must end the wait")


def interrupted():
    raise KeyboardInterrupt


@pytest.fixture
def run_folder(tmp_path):
    """A finished run: `cpu` is built, `gpu` is skipped."""
    folder = tmp_path / "run"
    model = folder / "targets" / "cpu" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"no server reads this")
    serving = Serving(mode=ServingMode.SINGLE_SAMPLE)
    record = stage_record(Blob(digest=summaries.digest(), size=1))
    write_repository(
        folder / "targets" / "cpu" / "repository",
        name="digits",
        onnx=model,
        signature=record.artifact.signature,
        serving=serving,
        hardware=Hardware.X86_VNNI,
        digest=summaries.digest(),
        profile=Profile.ONNXRUNTIME,
    )
    target = summaries.target(
        artifact=summaries.digest(),
        model_file="targets/cpu/model.onnx",
        repository="targets/cpu/repository",
        serving=serving,
    )
    path = folder / target.stages[-1].record
    path.parent.mkdir(parents=True)
    path.write_text(record.model_dump_json(by_alias=True))
    result = summaries.summary(summaries.skipped(), target)
    (folder / "summary.json").write_text(result.model_dump_json(by_alias=True))
    return folder


@pytest.fixture
def started(monkeypatch):
    """Servers that were started: (kind, backends of the models at that time, arguments, server)."""
    found = []

    def start(kind):
        def call(repository, **arguments):
            server = FakeServer(started.end)
            found.append(
                (kind, [m.config.backend or m.config.platform for m in read_repository(repository)], arguments)
            )
            started.server, started.repository = server, repository
            return server

        return call

    started = argparse.Namespace(found=found, end=time_over, server=None, repository=None)
    monkeypatch.setattr(serve, "start_lathe", start("lathe"))
    monkeypatch.setattr(serve, "start_triton", start("triton"))
    return started


@pytest.mark.parametrize("end", [time_over, interrupted, terminated])
def test_a_run_is_served_until_it_is_stopped(run_folder, started, end, capsys):
    started.end = end
    before = signal.getsignal(signal.SIGTERM)
    assert main.main(["serve", str(run_folder), "--serve-seconds", "5"]) == 0
    assert started.found == [
        ("lathe", ["onnxruntime_onnx"], {"http_port": 0, "grpc_port": 0, "host": "127.0.0.1", "verify_key": None}),
    ]
    assert started.server.stopped
    assert started.server.limit == 5
    assert signal.getsignal(signal.SIGTERM) is before
    out = capsys.readouterr().out
    assert "serving digits\n  http  127.0.0.1:1\n  grpc  127.0.0.1:2\n" in out
    assert 'triton.InferInput("image", [1, 1, 16, 16], "FP32")' in out


def test_triton_is_given_the_python_profile_in_a_folder_that_goes_away(run_folder, started):
    assert main.main(["serve", str(run_folder), "--runtime", "triton"]) == 0
    assert [(kind, backends) for kind, backends, _ in started.found] == [("triton", ["python"])]
    assert not started.repository.exists()


def test_a_repository_is_served_as_it_is(run_folder, started):
    repository = run_folder / "targets" / "cpu" / "repository"
    assert main.main(["serve", str(repository)]) == 0
    assert started.repository == repository


def test_a_server_that_ends_by_itself_is_an_error(run_folder, started, capsys):
    started.end = lambda: 7
    assert main.main(["serve", str(run_folder)]) == 1
    assert started.server.stopped
    assert capsys.readouterr().err == "error: the server ended by itself with exit code 7\n"


def test_an_interrupt_during_the_start_stops_the_server(run_folder, started, monkeypatch, capsys):
    monkeypatch.setattr(FakeServer, "wait_ready", lambda *_: interrupted())
    assert main.main(["serve", str(run_folder)]) == 130
    assert started.server.stopped
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["{run}/nothing"], "neither a run folder (summary.json) nor a model repository", id="no folder"),
        pytest.param(["{run}/stages"], "neither a run folder (summary.json) nor a model repository", id="other folder"),
        pytest.param(["{run}", "--target", "gpu"], "gpu: Skipped, this machine has no such GPU", id="skipped target"),
        pytest.param(["{run}", "--target", "arm"], "no built target 'arm'", id="unknown target"),
        pytest.param(
            ["{run}/targets/cpu/repository", "--runtime", "triton"],
            "needs the ONNX Runtime backend",
            id="wrong backend",
        ),
        pytest.param(["{run}", "--http-port", "9000", "--grpc-port", "9000"], "also the --http-port", id="one port"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_server_starts(run_folder, started, arguments, told, capsys):
    assert main.main(["serve", *(a.format(run=run_folder) for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("error: ")
    assert not started.found


def test_a_summary_of_another_version_is_refused(run_folder, started, capsys):
    (run_folder / "summary.json").write_text(json.dumps({"schema": "lathe.dev/summary/v9"}))
    assert main.main(["serve", str(run_folder)]) == 2
    assert "not a summary that this version reads" in capsys.readouterr().err
    assert not started.found


def test_serving_a_part_of_a_run_is_refused_before_the_run(capsys):
    assert main.main(["run", "model.yaml", "--serve", "lathe", "--until", "slim"]) == 2
    assert "--until ends the run before there is a result" in capsys.readouterr().err


def test_a_skipped_target_is_never_served(run_folder):
    assert serve._built(run_folder, None).state is TargetState.BUILT
