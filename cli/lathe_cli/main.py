"""The `lathe` command. Its start-up loads nothing but argparse; every command imports what it needs.

Exit status: 0 fine, 1 a stage or Lathe itself failed, 2 bad input or usage, 3 a gate failed, 4 a gate could not
decide, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FAILED: Final = 1
BAD_INPUT: Final = 2
INTERRUPTED: Final = 130
LARGEST_PORT: Final = 65535
LARGEST_SEED: Final = 2**31 - 1
"""As in documents."""
LARGEST_SEGMENT: Final = 99
EXTRAS: Final = {
    "optimizers": ("fsspec", "numpy", "onnx", "onnxruntime", "onnxscript", "optuna", "safetensors", "torch", "torchao"),
    "runtimes": ("cryptography", "google", "grpc", "httptools", "tritonclient", "uvloop"),
    "data": ("PIL", "pyarrow"),
    "cli": ("rich",),
}
"""Which extra of the distribution brings which modules."""
NEEDED: Final = {
    "optimizers": "the optimizers",
    "runtimes": "the runtimes",
    "data": "a reader of this data format",
    "cli": "rich, unless --plain is given",
}
BUG: Final = (
    "This is a mistake in Lathe, not in your input. Please report it to its maintainers, with the lines above, the "
    "document and the output of `lathe version`."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        status = _dispatch(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        kept = "; finished stages are kept" if options.command in {"run", "job"} else ""
        _tell(f"interrupted{kept}", options.command)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has seen enough. Python must not complain about it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last place that can explain it
        return _explain(error, options.command)
    return status


def _explain(error: Exception, command: str) -> int:
    """Tell what went wrong; the exit status."""
    extra = _missing_extra(error, command)
    if extra is not None:
        _tell(f'error: lathe {command} needs {NEEDED[extra]}: install "lathe-platform[{extra}]"', command)
        return BAD_INPUT
    status = _status(error)
    if command == "job" and "lathe_optimizers.errors.StageMemoryError" in _kinds(error):
        from lathe_api.wiring import EXIT_OUT_OF_MEMORY

        status = EXIT_OUT_OF_MEMORY
    if status is None:
        import traceback

        traceback.print_exception(error)
        _tell(f"\n{BUG}", command, reason=f"{type(error).__name__}: {error}. {BUG}")
        return FAILED
    from lathe_cli.texts import printable

    lines = [printable(line) for line in str(error).splitlines()]
    text = "\n".join(line if line.startswith(" ") else f"error: {line}" for line in lines)
    _tell(text, command, reason="\n".join(lines))
    return status


def _tell(text: str, command: str, *, reason: str | None = None) -> None:
    """Say why a command ends; a Job's pod also leaves it where Kubernetes reads it."""
    print(text, file=sys.stderr)
    if command == "job":
        from lathe_cli.jobplaces import leave_reason

        leave_reason(reason or text)


def _missing_extra(error: Exception, command: str) -> str | None:
    if not isinstance(error, ModuleNotFoundError):
        return None
    module = (error.name or "").partition(".")[0]
    found = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    # Servers bring numpy and ONNX Runtime themselves.
    return "runtimes" if command == "serve" and found == "optimizers" else found


def _dispatch(options: argparse.Namespace) -> int:
    match options.command:
        case "run":
            from lathe_cli.run import run

            return run(options)
        case "serve":
            from lathe_cli.serve import serve

            return serve(options)
        case "job" | "rollback" | "diff":
            return _in_cluster(options)
        case "explain" | "reproduce" | "verify":
            return _on_evidence(options)
        case "validate" | "schema":
            return _on_documents(options)
        case _:
            from importlib.metadata import version

            print(version("lathe-platform"))
            return 0


def _on_evidence(options: argparse.Namespace) -> int:
    if options.command == "verify":
        from lathe_cli.provenance import verify

        return verify(options)
    from lathe_cli import evidence

    return evidence.explain(options) if options.command == "explain" else evidence.reproduce(options)


def _on_documents(options: argparse.Namespace) -> int:
    if options.command == "schema":
        from lathe_cli.schema import run_schema

        return run_schema(options.kind)
    from lathe_cli.validate import run_validate

    return run_validate(options.files, as_json=options.json)


def _in_cluster(options: argparse.Namespace) -> int:
    match options.command:
        case "job":
            from lathe_cli.job import job

            return job(options)
        case "rollback":
            from lathe_cli.rollback import rollback

            return rollback(options)
        case _:
            from lathe_cli.revisiondiff import diff

            return diff(options)


def _kinds(error: Exception) -> set[str]:
    """Names of its classes. An error class that was never imported was never raised, and is not imported here."""
    return {f"{c.__module__}.{c.__name__}" for c in type(error).__mro__}


def _status(error: Exception) -> int | None:
    """Exit status of an error that is explained by its message; None for one that is not."""
    kinds = _kinds(error)
    bad_input = {
        "lathe_api.errors.ApiError",
        "lathe_cli.cluster.NotThereError",
        "lathe_optimizers.errors.InputError",
        "lathe_runtimes.errors.InputError",
        "lathe_runtimes.errors.RepositoryError",
    }
    if kinds & bad_input:
        return BAD_INPUT
    failures = {
        "lathe_cli.cluster.ClusterError",
        "lathe_optimizers.errors.LatheError",
        "lathe_runtimes.errors.LatheRuntimeError",
    }
    return FAILED if kinds & failures else None


def default_store() -> str:
    """`$LATHE_STORE`, or a folder of the user's cache."""
    # Left as `~` for the user of a container who has no home.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    return os.environ.get("LATHE_STORE") or str(cache / "lathe" / "store")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lathe", description="Turns a trained model into a small, fast, served one.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="optimise a model, prove it, and serve it if asked")
    run.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the document, and recipes it refers to")
    run.add_argument("--name", help="which OptimizedModel, where the files hold several")
    run.add_argument("--store", default=default_store(), metavar="URI", help="where results are kept (%(default)s)")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (lathe-out/NAME)")
    run.add_argument("--seed", type=_seed, metavar="N", help="of all that is random (the document's, else 0)")
    run.add_argument("--until", metavar="STAGE", help="end after this stage; `import` is the first")
    run.add_argument("--target", action="append", default=[], metavar="NAME", help="build this target only; repeatable")
    run.add_argument("--dry-run", action="store_true", help="say what would be done, and which results are kept")
    run.add_argument("--json", action="store_true", help="summary on standard output, events on standard error")
    run.add_argument("--plain", action="store_true", help="lines instead of a live table")
    run.add_argument(
        "--serve", choices=("lathe", "triton", "none"), default="none", help="serve the result (%(default)s)"
    )
    run.add_argument(
        "--signing-key",
        type=Path,
        metavar="PEM",
        help="private key that the result is signed with ($LATHE_SIGNING_KEY)",
    )
    _add_server_options(run)

    serve = commands.add_parser("serve", help="serve a finished run, or a model repository")
    serve.add_argument("folder", type=Path, metavar="FOLDER", help="run folder or Triton model repository")
    serve.add_argument("--runtime", choices=("lathe", "triton"), default="lathe", help="which server (%(default)s)")
    serve.add_argument("--target", metavar="NAME", help="which target of the run (the first that was built)")
    _add_server_options(serve)

    verify = commands.add_parser("verify", help="that a run or repository is what was signed")
    verify.add_argument("folder", type=Path, metavar="FOLDER", help="run folder or model repository")
    verify.add_argument("--key", type=Path, required=True, metavar="PEM", help="public key of who published it")

    for name, what in (
        ("explain", "why a stage was looked up or done, and what its verdicts rest on"),
        ("reproduce", "do a stage again and compare the bytes (exit status 3 where they differ)"),
    ):
        asked = commands.add_parser(name, help=what)
        asked.add_argument("place", metavar="OUT|KEY", help="run folder, or the key of a stage in the store")
        asked.add_argument("stage", nargs="?", metavar="STAGE", help="name of a stage of the run folder")
        asked.add_argument("--target", metavar="NAME", help="which target of the run (the first that ran)")
        asked.add_argument("--store", default=default_store(), metavar="URI", help="of a KEY (%(default)s)")

    validate = commands.add_parser("validate", help="all that is wrong with documents, without running anything")
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    validate.add_argument("--json", action="store_true", help="one JSON document on standard output")

    schema = commands.add_parser("schema", help="JSON Schema of a kind, for editors")
    schema.add_argument("kind", metavar="KIND", help="OptimizedModel, OptimizationRecipe, … or a short name such as om")

    job = commands.add_parser("job", help="one segment of a ModelRevision, as a Job's pod runs it")
    job.add_argument("revision", type=Path, metavar="REVISION_FILE", help="the ModelRevision, as JSON")
    job.add_argument("--segment", type=_segment, required=True, metavar="N", help="which segment; 0 is the first")
    job.add_argument("--until", metavar="STAGE", help="end after this stage (the last of the segment)")

    rollback = commands.add_parser("rollback", help="let a model in the cluster go back to an earlier revision")
    rollback.add_argument("name", metavar="NAME", help="of the OptimizedModel")
    rollback.add_argument("--to", metavar="REVISION", help="name or hash (the one that served before)")
    rollback.add_argument("--dry-run", action="store_true", help="say what would be changed")
    _add_cluster_options(rollback)

    diff = commands.add_parser("diff", help="what two revisions in the cluster were asked for, and what came of it")
    diff.add_argument("first", metavar="REVISION", help="name or hash of a ModelRevision")
    diff.add_argument("second", metavar="REVISION", help="name or hash of another")
    _add_cluster_options(diff)

    commands.add_parser("version", help="the version of Lathe")
    return parser


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--http-port", type=_port, default=0, metavar="N", help="0 takes a free one")
    parser.add_argument("--grpc-port", type=_port, default=0, metavar="N", help="0 takes a free one")
    parser.add_argument("--serve-seconds", type=_duration, metavar="N", help="stop after this long (on Ctrl-C)")
    parser.add_argument("--verify-key", type=Path, metavar="PEM", help="serve only what is signed with this public key")


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--namespace", metavar="NAME", help="namespace (that of kubectl's context)")
    parser.add_argument("--context", metavar="NAME", help="context of kubectl's configuration (the current one)")


def _port(text: str) -> int:
    return _within(text, LARGEST_PORT)


def _seed(text: str) -> int:
    return _within(text, LARGEST_SEED)


def _segment(text: str) -> int:
    return _within(text, LARGEST_SEGMENT)


def _within(text: str, largest: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(largest)) and int(text) <= largest):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {largest}")
    return int(text)


def _duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
