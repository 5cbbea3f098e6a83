"""The `lathe` command. Its start-up loads nothing but argparse; every command imports what it needs.

Exit status: 0 fine, 1 a stage or Lathe itself failed, 2 bad input or usage, 3 a gate failed, 4 a gate could not
decide, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
EXTRAS = {
    "fsspec": "optimizers",
    "numpy": "optimizers",
    "torch": "optimizers",
    "onnx": "optimizers",
    "onnxruntime": "optimizers",
    "rich": "cli",
    "tritonclient": "runtimes",
    "grpc": "runtimes",
    "httptools": "runtimes",
    "uvloop": "runtimes",
}
"""Which extra of the distribution brings a module."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _dispatch(options)
    except KeyboardInterrupt:
        print("interrupted; finished stages are kept", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f'error: lathe {options.command} needs more: install "lathe-platform[{extra}]"', file=sys.stderr)
        return BAD_INPUT
    except Exception as error:
        status = _status(error)
        if status is None:
            raise
        for line in str(error).splitlines():
            print(f"error: {line}" if not line.startswith(" ") else line, file=sys.stderr)
        return status


def _dispatch(options: argparse.Namespace) -> int:
    match options.command:
        case "run":
            from lathe_cli.run import run

            return run(options)
        case "serve":
            from lathe_cli.serve import serve

            return serve(options)
        case "validate":
            from lathe_cli.validate import run_validate

            return run_validate(options.files, as_json=options.json)
        case "schema":
            from lathe_cli.schema import run_schema

            return run_schema(options.kind)
        case _:
            from importlib.metadata import version

            print(version("lathe-platform"))
            return 0


def _status(error: Exception) -> int | None:
    """Exit status of an error that is explained by its message; None for one that is not."""
    # Read off the names of loaded modules: an error class that was never imported was never raised.
    kinds = {f"{c.__module__}.{c.__name__}" for c in type(error).__mro__}
    bad_input = {
        "lathe_api.errors.ApiError",
        "lathe_optimizers.errors.InputError",
        "lathe_runtimes.errors.InputError",
        "lathe_runtimes.errors.RepositoryError",
    }
    if kinds & bad_input:
        return BAD_INPUT
    return FAILED if kinds & {"lathe_optimizers.errors.LatheError", "lathe_runtimes.errors.LatheRuntimeError"} else None


def default_store() -> str:
    """`$LATHE_STORE`, or a folder of the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return os.environ.get("LATHE_STORE") or str(cache / "lathe" / "store")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lathe", description="Turns a trained model into a small, fast, served one.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="optimise a model, prove it, and serve it if asked")
    run.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the document, and recipes it refers to")
    run.add_argument("--name", help="which OptimizedModel, where the files hold several")
    run.add_argument("--store", default=default_store(), metavar="URI", help="where results are kept (%(default)s)")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (lathe-out/NAME)")
    run.add_argument("--seed", type=int, help="of all that is random (the document's, else 0)")
    run.add_argument("--until", metavar="STAGE", help="end after this stage; `import` is the first")
    run.add_argument("--target", action="append", default=[], metavar="NAME", help="build this target only; repeatable")
    run.add_argument("--dry-run", action="store_true", help="say what would be done, and which results are kept")
    run.add_argument("--json", action="store_true", help="summary on standard output, events on standard error")
    run.add_argument("--plain", action="store_true", help="lines instead of a live table")
    run.add_argument(
        "--serve", choices=("lathe", "triton", "none"), default="none", help="serve the result (%(default)s)"
    )
    _add_server_options(run)

    serve = commands.add_parser("serve", help="serve a finished run, or a model repository")
    serve.add_argument("folder", type=Path, metavar="FOLDER", help="run folder or Triton model repository")
    serve.add_argument("--runtime", choices=("lathe", "triton"), default="lathe", help="which server (%(default)s)")
    serve.add_argument("--target", metavar="NAME", help="which target of the run (the first that was built)")
    _add_server_options(serve)

    validate = commands.add_parser("validate", help="all that is wrong with documents, without running anything")
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    validate.add_argument("--json", action="store_true", help="one JSON document on standard output")

    schema = commands.add_parser("schema", help="JSON Schema of a kind, for editors")
    schema.add_argument("kind", metavar="KIND", help="OptimizedModel, OptimizationRecipe, … or a short name such as om")

    commands.add_parser("version", help="the version of Lathe")
    return parser


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--http-port", type=int, default=0, metavar="N", help="0 takes a free one")
    parser.add_argument("--grpc-port", type=int, default=0, metavar="N", help="0 takes a free one")
    parser.add_argument("--serve-seconds", type=float, metavar="N", help="stop after this long (on Ctrl-C)")


if __name__ == "__main__":
    sys.exit(main())
