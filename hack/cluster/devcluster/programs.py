"""The programs of the cluster: built once per machine and set of pins into a cache."""

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOOLS: Final = Path(__file__).resolve().parents[1] / "tools"
"""A Go module for each program: its go.mod and go.sum are the pins."""
KUBERNETES: Final = "v1.36.3"
KSERVE: Final = "github.com/kserve/kserve@v0.20.0"
_VERSION: Final = "k8s.io/component-base/version"


class BuildError(Exception):
    """A program cannot be built; the message ends with what the compiler said."""


@dataclass(frozen=True)
class Program:
    """One program and where it comes from."""

    name: str
    module: str
    """Folder of `tools`."""
    package: str
    """Import path of its main package."""
    flags: str = "-s -w"
    """For the linker."""


def _kubernetes(name: str) -> Program:
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    # Clients refuse a server that does not tell its version, which only a linker flag sets.
    told = f"-X {_VERSION}.gitVersion={KUBERNETES} -X {_VERSION}.gitMajor={major} -X {_VERSION}.gitMinor={minor}"
    return Program(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", f"-s -w {told}")


CONTROL_PLANE: Final = (
    Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    _kubernetes("kube-apiserver"),
    _kubernetes("kube-controller-manager"),
    _kubernetes("kubectl"),
)
KSERVE_MANAGER: Final = Program("kserve-manager", "kserve", "github.com/kserve/kserve/cmd/manager")
CHART_TOOLS: Final = (
    Program("helm", "helm", "helm.sh/helm/v3/cmd/helm"),
    Program("helm-unittest", "helm-unittest", "github.com/helm-unittest/helm-unittest/cmd/helm-unittest"),
)
NODE: Final = (
    _kubernetes("kube-scheduler"),
    _kubernetes("kubelet"),
    _kubernetes("kube-proxy"),
    Program("coredns", "coredns", "github.com/coredns/coredns"),
)
PAUSE: Final = Program("pause", "pause", "lathe.dev/tools/pause")
MINIO: Final = Program("minio", "minio", "github.com/minio/minio")
ALL: Final = (*CONTROL_PLANE, KSERVE_MANAGER, *CHART_TOOLS, *NODE, PAUSE, MINIO)


def cache() -> Path:
    """Where programs are kept: `$LATHE_CLUSTER_CACHE`, else below the user's cache folder."""
    given = os.environ.get("LATHE_CLUSTER_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "lathe-cluster"


def path(program: Program) -> Path:
    """The program, built now unless it is in the cache.

    Raises:
        BuildError: Go is missing, or the build fails.
    """
    found = _place(program)
    if found.exists():
        return found
    with _locked(cache() / f"{program.module}.lock"):
        if not found.exists():
            _build(program, found)
    return found


def kserve_folder() -> Path:
    """KServe's module, whose `config` has its CRDs, roles and webhooks.

    Raises:
        BuildError: it cannot be downloaded.
    """
    _go(["mod", "download", KSERVE], TOOLS / "kserve")
    found = _go(["list", "-m", "-f", "{{.Dir}}", KSERVE.partition("@")[0]], TOOLS / "kserve")
    return Path(found.strip())


def _place(program: Program) -> Path:
    sources = sorted(p for p in (TOOLS / program.module).iterdir() if p.name == "go.mod" or p.suffix in (".sum", ".go"))
    pins = b"".join(p.read_bytes() for p in sources)
    key = hashlib.sha256(pins + program.flags.encode()).hexdigest()[:12]
    return cache() / f"{program.module}-{key}" / program.name


def _build(program: Program, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".{program.name}.{os.getpid()}")
    arguments = ["build", "-mod=readonly", f"-ldflags={program.flags}", "-o", str(aside), program.package]
    _go(arguments, TOOLS / program.module)
    aside.replace(place)


def _go(arguments: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(["go", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BuildError("go is not installed: the test cluster is built from Go modules. Install Go 1.26") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(f"go {' '.join(arguments)} in {folder}: {error.stderr[-4000:]}") from error
    return done.stdout


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Two test processes must not build the same program: each build takes both cores."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
