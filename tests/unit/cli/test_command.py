"""The `lathe` command: light start-up, exit status for every outcome, nothing but the summary on standard output."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.projects import make_project
from support.records import KEY, metrics

from lathe_api.events import GateJudged, Notice, RunPlanned, StageFinished, StageProgress, StageRef, StageStarted
from lathe_api.gates import GateMetric
from lathe_api.objects import ObjectMeta
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.summary import GateResult, StageResult, Summary, TargetResult, TargetState, Verdict
from lathe_api.targets import Hardware
from lathe_cli import main, run
from lathe_cli.live import LiveTable
from lathe_cli.plain import Lines
from lathe_optimizers.errors import InputError, StageError, StoreError, UnsafeFileError
from lathe_optimizers.run import PlannedStage

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "rich", "pydantic", "yaml", "tritonclient")


def gate(verdict=Verdict.PASSED):
    return GateResult(
        gate="accuracy",
        target="cpu",
        stage="onnx",
        metric=GateMetric.ACCURACY,
        verdict=verdict,
        value=0.03,
        low=0.02,
        high=0.04,
        bound="drop <= 0.02 absolute",
        reason="the drop is 0.03 [0.02, 0.04] on 200 samples",
        remedy=None if verdict is Verdict.PASSED else "more epochs",
    )


def stage(name="slim", *, cached=False):
    return StageResult(
        name=name,
        type="Prune",
        key=KEY,
        cached=cached,
        artifact=KEY,
        metrics=metrics(),
        seconds=1.5,
        peak_memory_bytes=1,
        record=f"stages/cpu/{name}/stage.json",
    )


def summary(verdict=Verdict.PASSED):
    state = TargetState.BUILT if verdict is Verdict.PASSED else TargetState.REFUSED
    target = TargetResult(
        name="cpu", hardware=Hardware.X86_VNNI, state=state, reason="because", stages=(stage(),), gates=(gate(verdict),)
    )
    return Summary(
        name="patterns",
        revision="patterns-0123456789",
        verdict=verdict,
        seed=0,
        store="store",
        out="out",
        cache_hits=1,
        stages_run=2,
        seconds=3.0,
        targets=(target,),
    )


EVENTS = (
    RunPlanned(
        name="patterns",
        revision="patterns-0123456789",
        stages=(StageRef(id="slim", name="slim", type="Prune", targets=("cpu",)),),
    ),
    Notice(message="target gpu is skipped"),
    StageStarted(id="slim"),
    StageProgress(id="slim", percent=50.0, step="train", epoch=1, epochs=2, loss=0.25, eta_seconds=3.0),
    StageFinished(id="slim", result=stage()),
    GateJudged(result=gate()),
)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `lathe run` on a real document with an `execute` that tells EVENTS and then gives or raises `outcome`."""
    model = tmp_path / "model.pt2"
    model.touch()
    project = make_project(tmp_path / "project", tmp_path / "store", model, [])
    project.change(recipe={"stages": [{"name": "onnx", "type": "Export", "export": {}}]})

    def call(outcome, *arguments):
        def execute(document, options, observe, key):
            assert document.metadata.name == "patterns"
            assert options.base == project.folder
            if isinstance(outcome, BaseException):
                raise outcome
            for event in EVENTS:
                observe(event)
            return outcome

        monkeypatch.setattr(run, "_execute", execute)
        status = main.main([*project.command(*arguments)[3:]])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (summary(), 0),
        (summary(Verdict.FAILED), 3),
        (summary(Verdict.INCONCLUSIVE), 4),
        (InputError("spec.model", "nothing", "Write it"), 2),
        (UnsafeFileError("model.pt2", "a pickle", "Export again"), 2),
        (StageError("slim", "it ended"), 1),
        (StoreError("no space left"), 1),
        (KeyboardInterrupt(), 130),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_outcome_has_its_exit_status(command, outcome, status):
    found, _, err = command(outcome)
    assert found == status
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ZeroDivisionError(), ModuleNotFoundError("no such thing", name="lathe_cli.gone")])
def test_an_unexplained_error_keeps_its_traceback_and_says_what_to_do_with_it(command, error):
    status, out, err = command(error)
    assert status == 1
    assert out == ""
    assert "Traceback (most recent call last)" in err
    assert type(error).__name__ in err
    assert "Please report it" in err


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("torch", 'lathe run needs the optimizers: install "lathe-platform[optimizers]"'),
        ("onnxruntime.capi", 'lathe run needs the optimizers: install "lathe-platform[optimizers]"'),
        ("uvloop", 'lathe run needs the runtimes: install "lathe-platform[runtimes]"'),
        ("pyarrow", 'lathe run needs a reader of this data format: install "lathe-platform[data]"'),
        ("rich", 'lathe run needs rich, unless --plain is given: install "lathe-platform[cli]"'),
    ],
)
def test_a_missing_extra_says_what_to_install(command, module, told):
    status, _, err = command(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert status == 2
    assert err == f"error: {told}\n"


def test_every_problem_of_a_document_has_its_line(tmp_path, capsys):
    path = tmp_path / "model.yaml"
    path.write_text(
        "apiVersion: lathe.dev/v1alpha1\nkind: OptimizedModel\nmetadata: {name: UPPER}\nspec: {modle: {}}\n"
    )
    assert main.main(["run", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert all(line.startswith(f"error: {path}") for line in lines)
    assert any("spec.modle" in line for line in lines)


def test_control_characters_of_a_file_do_not_reach_the_terminal(command):
    _, _, err = command(InputError("model.pt2", "the layer '\x1b[2J\u202e'", "Rename it"))
    assert err == "error: model.pt2: the layer '\\x1b[2J\\u202e'. Rename it\n"


def test_interrupted_work_is_told_to_be_kept(command):
    assert command(KeyboardInterrupt())[2] == "interrupted; finished stages are kept\n"


def test_a_dry_run_for_machines_is_one_json_document(command, monkeypatch):
    planned = PlannedStage("onnx", "onnx", "Export", ("cpu",), key=None, cached=None)
    monkeypatch.setattr(run, "preview", lambda document, options: (planned,))
    status, out, err = command(AssertionError("a dry run does nothing"), "--dry-run", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == [
        {"id": "onnx", "name": "onnx", "type": "Export", "targets": ["cpu"], "key": None, "cached": None}
    ]
    assert "onnx  Export    cpu: depends on the stages before" in command(None, "--dry-run")[1]


def test_a_run_without_the_runtimes_writes_no_repository_and_says_so(monkeypatch):
    def missing(document, key):
        raise ModuleNotFoundError("No module named 'tritonclient'", name="tritonclient")

    told, published = [], []
    monkeypatch.setattr(run, "_publisher", missing)
    monkeypatch.setattr(run, "execute", lambda document, options, observe, publish: published.append(publish))
    run._execute(OptimizedModel.model_construct(metadata=ObjectMeta(name="patterns")), None, told.append, None)
    assert published == [None]
    assert [n.message for n in told if 'install "lathe-platform[runtimes]"' in n.message]


@pytest.mark.parametrize(("key", "variable"), [(Path("key.pem"), ""), (None, "key.pem")], ids=["flag", "variable"])
def test_nothing_is_left_unsigned_for_want_of_the_runtimes(monkeypatch, key, variable):
    def missing(document, key):
        raise ModuleNotFoundError("No module named 'tritonclient'", name="tritonclient")

    monkeypatch.setattr(run, "_publisher", missing)
    monkeypatch.setenv("LATHE_SIGNING_KEY", variable)
    with pytest.raises(ModuleNotFoundError):
        run._execute(OptimizedModel.model_construct(metadata=ObjectMeta(name="patterns")), None, [].append, key)


def test_a_reader_of_a_pipe_may_leave():
    command = [sys.executable, "-m", "lathe_cli.main", "schema", "om"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_json_leaves_nothing_but_the_summary_on_standard_output(command):
    _, out, err = command(summary(), "--json")
    assert out.count("\n") == 1
    assert Summary.model_validate_json(out) == summary()
    assert [json.loads(line)["event"] for line in err.splitlines()] == [e.event for e in EVENTS]


def test_a_refused_run_says_why_and_what_to_try(command):
    _, out, _ = command(summary(Verdict.FAILED))
    assert "Failed" in out
    assert "the drop is 0.03" in out
    assert "try: more epochs" in out


def test_lines_tell_every_change_and_little_progress(command):
    _, out, _ = command(summary(), "--plain")
    assert "slim: 50 % train, epoch 1/2, loss 0.25, 3.0 s left" in out
    assert "slim: 1.5 s, accuracy 0.9500 ±0.0200, 1.0 kB" in out
    assert "note: target gpu is skipped" in out


def test_progress_is_not_repeated_within_a_quarter_and_ten_seconds():
    written, now = [], [0.0]
    lines = Lines(written.append, lambda: None, lambda: now[0])
    lines(StageStarted(id="slim"))
    for percent in range(0, 100, 5):
        lines(StageProgress(id="slim", percent=percent, step="train"))
    assert len(written) == 1 + 3
    now[0] = 11.0
    lines(StageProgress(id="slim", percent=99.0, step="train"))
    assert len(written) == 1 + 4


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_live_table_fits_the_terminal(width):
    from rich.console import Console

    screen = io.StringIO()
    table = LiveTable(Console(file=screen, width=width, force_terminal=True, color_system=None))
    for event in EVENTS:
        table(event)
        table.console.print(table.render())
    text = screen.getvalue()
    assert "slim" in text
    assert "0.9500" in text
    assert ("±0.0200" in text) == (width > 60)
    assert "slim: 50 % train, epoch 1/2, loss 0.25, 3.0 s left" in text
    assert "gate accuracy" in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_a_cached_stage_says_so():
    written = []
    Lines(written.append, lambda: None)(StageFinished(id="slim", result=stage(cached=True)))
    assert "cached" in written[0]


def test_starting_the_command_loads_nothing_heavy():
    code = f"import sys, lathe_cli.main; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_documents_loads_no_model_library():
    code = (
        "import sys, lathe_cli.validate, lathe_cli.schema, lathe_operator, lathe_operator.plan; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_planning_a_run_loads_no_torch():
    code = "import sys, lathe_optimizers.run; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_folder_operator_never_shadows_the_standard_library():
    root = Path(__file__).parents[3]
    assert not (root / "operator" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import operator; print(operator.itemgetter)"],
        cwd=root,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "x.yaml", "--serve", "apache"],
        ["run", "x.yaml", "--seed", "-1"],
        ["run", "x.yaml", "--seed", "2147483648"],
        ["run", "x.yaml", "--http-port", "65536"],
        ["serve", "x", "--grpc-port", "http"],
        ["serve", "x", "--serve-seconds", "nan"],
        ["serve", "x", "--serve-seconds", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_schema_and_version_print(capsys):
    assert main.main(["schema", "om"]) == 0
    assert json.loads(capsys.readouterr().out)["title"]
    assert main.main(["version"]) == 0
    assert capsys.readouterr().out.count(".") == 2
