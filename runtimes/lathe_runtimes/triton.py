"""The real Triton server out of a Python wheel, in an environment of its own.

The wheel of PyTriton carries `tritonserver` with the python backend. It needs numpy 1, so it never shares an
environment with Lathe: one is made on first use in the user's cache, under a name that follows from the pins.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lathe_runtimes.errors import EnvironmentUnavailableError

TRITON_VERSION: Final = "2.51.0"
PYTHON: Final = (3, 11)
"""The wheel has a stub of the python backend for each Python version; ours is for this one."""
PINS: Final = ("nvidia-pytriton==0.7.0",)
"""Without its dependencies: they belong to PyTriton's Python API, of which nothing is used."""
PACKAGES: Final = ("numpy==1.26.4", "onnxruntime==1.23.2")
"""For the models, in the interpreter of the stub."""
_INSTALL_SECONDS: Final = 900


@dataclass(frozen=True)
class Installation:
    """A complete environment."""

    root: Path

    @property
    def binary(self) -> Path:
        """The server."""
        return self.root / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """Its backend folder, with the stub in place."""
        return self.root / "tritonserver" / "backends"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the server needs: its libraries, and the interpreter that the stub takes packages from."""
        site = self.root / "venv" / "lib" / f"python{PYTHON[0]}.{PYTHON[1]}" / "site-packages"
        libraries = f"{_library_folder()}:{site / 'nvidia_pytriton.libs'}"
        path = f"{self.root / 'venv' / 'bin'}:{os.environ.get('PATH', os.defpath)}"
        # The parent's interpreter settings are not for the stub's interpreter.
        return {"LD_LIBRARY_PATH": libraries, "PATH": path, "PYTHONPATH": str(site), "PYTHONHOME": ""}


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/lathe`, or `~/.cache/lathe`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lathe"


def ensure_triton(cache: Path | None = None) -> Installation:
    """The environment, made when it is missing (about 200 MB; some minutes on a slow line).

    Two callers at once make it once. An installation that is interrupted leaves nothing that is taken for complete.

    Args:
        cache: folder for environments; by default `cache_folder()`.

    Raises:
        EnvironmentUnavailableError: this machine cannot run or install it; says why.
    """
    _check_machine()
    folder = cache or cache_folder()
    place = folder / f"triton-{_key()}"
    if place.is_dir():
        return Installation(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{place.name}.lock"):
            if not place.is_dir():
                _install(place)
    except OSError as error:
        raise EnvironmentUnavailableError(f"Triton cannot be installed into {folder}: {error}") from error
    return Installation(place)


def _key() -> str:
    # A virtual environment refers to its interpreter, and so belongs to it.
    parts = (*PINS, *PACKAGES, sys.version, _base_interpreter())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _base_interpreter() -> str:
    return str(Path(sys.base_prefix) / "bin" / f"python{PYTHON[0]}.{PYTHON[1]}")


def _check_machine() -> None:
    if sys.version_info[:2] != PYTHON:
        found = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise EnvironmentUnavailableError(
            f"Triton's python backend needs Python {PYTHON[0]}.{PYTHON[1]}; this is Python {found}. "
            "Run Lathe with Python 3.11, or serve with the Lathe runtime."
        )
    machine = (sys.platform, platform.machine())
    if machine[0] != "linux" or machine[1] not in {"x86_64", "aarch64"}:
        raise EnvironmentUnavailableError(f"Triton has no wheel for {machine[0]} on {machine[1]}: serve with Lathe.")
    if not list(_library_folder().glob(f"libpython{PYTHON[0]}.{PYTHON[1]}.so*")):
        raise EnvironmentUnavailableError(
            f"Triton's python backend needs libpython{PYTHON[0]}.{PYTHON[1]}.so, which is not in {_library_folder()}. "
            f"Install it (Debian: package libpython{PYTHON[0]}.{PYTHON[1]}), or use a Python that was built with it."
        )


def _library_folder() -> Path:
    return Path(str(sysconfig.get_config_var("LIBDIR")))


def _install(place: Path) -> None:
    # A virtual environment knows its own path, so it is made where it stays; the rename of its folder publishes it,
    # and nothing of it is used by its first path: the stub finds packages by PYTHONPATH.
    aside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        venv = aside / "venv"
        _make_environment(venv)
        site = venv / "lib" / f"python{PYTHON[0]}.{PYTHON[1]}" / "site-packages"
        _assemble(site / "pytriton" / "tritonserver", aside / "tritonserver")
        os.sync()
        aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _make_environment(venv: Path) -> None:
    uv = shutil.which("uv")
    python = str(venv / "bin" / "python")
    base = _base_interpreter() if Path(_base_interpreter()).exists() else sys.executable
    if uv is not None:
        _run([uv, "venv", "--quiet", "--no-project", "--python", base, str(venv)])
        install = [uv, "pip", "install", "--quiet", "--python", python]
    else:
        _run([base, "-m", "venv", str(venv)])
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*install, "--no-deps", *PINS])
    _run([*install, "--only-binary", ":all:", *PACKAGES])


def _assemble(shipped: Path, target: Path) -> None:
    if not (shipped / "bin" / "tritonserver").is_file():
        raise EnvironmentUnavailableError(f"{PINS[0]} carries no tritonserver on this machine. Serve with Lathe.")
    shutil.copytree(shipped, target)
    stub = target / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(target / "python_backend_stubs" / f"{PYTHON[0]}.{PYTHON[1]}" / stub.name, stub)
    for program in (stub, target / "bin" / "tritonserver"):
        program.chmod(0o755)


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentUnavailableError(f"Triton cannot be installed: {error}") from error
    if done.returncode:
        raise EnvironmentUnavailableError(
            f"Triton cannot be installed: `{' '.join(command)}` ended with {done.returncode}:\n{done.stderr.strip()}"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
