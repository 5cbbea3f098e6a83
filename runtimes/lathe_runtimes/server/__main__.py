"""`python -m lathe_runtimes.server`.

Exit codes: 0 stopped as asked, 1 a model cannot be served, 2 bad input or usage.
"""

import argparse
import logging
import signal
import sys
from pathlib import Path

import uvloop

from lathe_runtimes.errors import InputError, LatheRuntimeError
from lathe_runtimes.provenance import load_verifier
from lathe_runtimes.server.app import SWITCH_SECONDS, Options, serve
from lathe_runtimes.server.model import available_cores


def main(arguments: list[str] | None = None) -> int:
    """Serve a model repository until SIGTERM or SIGINT."""
    # A parent that waits for these signals has them blocked, and its children inherit that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        options = _options(arguments)
        uvloop.run(serve(options, lambda line: print(line, flush=True)))  # noqa: T201 the parent reads this line
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except LatheRuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _options(arguments: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m lathe_runtimes.server", description="Serve a model repository over HTTP and gRPC."
    )
    parser.add_argument("--repository", type=Path, required=True, help="folder of <model>/config.pbtxt and versions")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--http-port", type=_port, default=8000, help="0 for a free port (default 8000)")
    parser.add_argument("--grpc-port", type=_port, default=8001, help="0 for a free port (default 8001)")
    parser.add_argument("--threads", type=_positive, default=available_cores(), help="cores to use (default: all)")
    parser.add_argument("--max-body-mib", type=_positive, default=64, help="largest request (default 64)")
    parser.add_argument("--verify-key", type=Path, help="public key (PEM): load only models that are signed with it")
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when the standard input ends")
    parser.add_argument(
        "--model-control",
        choices=["none", "explicit"],
        default="none",
        help="explicit: clients load and unload models; only those of --load-model are loaded at the start",
    )
    parser.add_argument("--load-model", action="append", default=[], help="with explicit control: a name, or *")
    parser.add_argument(
        "--memory-mib", type=_positive, help="what the models may take; the least recently used idle ones make room"
    )
    parser.add_argument("--control-tokens", type=Path, help="file of tokens that control calls need, one a line")
    parser.add_argument(
        "--linger-seconds", type=_seconds, default=0, help="serve this long after SIGTERM, not ready (default 0)"
    )
    found = parser.parse_args(arguments)
    return Options(
        repository=found.repository,
        host=found.host,
        http_port=found.http_port,
        grpc_port=found.grpc_port,
        threads=found.threads,
        max_body_bytes=found.max_body_mib * 1024 * 1024,
        stop_with_stdin=found.stop_with_stdin,
        verifier=None if found.verify_key is None else load_verifier(found.verify_key, "--verify-key"),
        explicit=found.model_control == "explicit",
        load_models=tuple(found.load_model),
        memory_bytes=(found.memory_mib or 0) * 1024 * 1024,
        control_tokens=found.control_tokens,
        linger_seconds=found.linger_seconds,
    )


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65_535:  # noqa: PLR2004 the largest port
        raise argparse.ArgumentTypeError(f"{text!r} is no port: write 0 to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number of 1 or more")
    return int(text)


def _seconds(text: str) -> int:
    if not text.isdigit() or int(text) > 3600:  # noqa: PLR2004 an hour
        raise argparse.ArgumentTypeError(f"{text!r}: write seconds, 0 to 3600")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
