"""Triton model repositories: `<root>/<name>/config.pbtxt` and `<root>/<name>/<version>/model.onnx`.

A model appears in the repository as a whole or not at all: it is written aside, flushed and renamed.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tritonclient.grpc.model_config_pb2 import ModelConfig

from lathe_api.manifest import Signature
from lathe_api.targets import Hardware, Serving
from lathe_runtimes import provenance
from lathe_runtimes.errors import InputError, RepositoryError
from lathe_runtimes.modelconfig import DIGEST_PARAMETER, Profile, build_config, config_text, parse_config
from lathe_runtimes.provenance import Verifier

Sign = Callable[[Mapping[str, str]], bytes]
"""From `sha256:…` of each file by path to the signed envelope."""
CONFIG: Final = "config.pbtxt"
ONNX: Final = "model.onnx"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION: Final = re.compile(r"[1-9][0-9]{0,9}")
_STAGING: Final = ".staging-"
_PYTHON_MODEL: Final = Path(__file__).parent / "backends" / "triton_python_model.py"


@dataclass(frozen=True)
class StoredModel:
    """One model of a repository."""

    folder: Path
    config: ModelConfig
    versions: tuple[int, ...]
    """The versions that the version policy serves, ascending."""
    attested: Mapping[str, str] | None = None
    """`sha256:…` of each file by path below `folder`, as signed; None where no signature was asked for."""

    def size(self, version: int) -> int:
        """Bytes of the model file; 0 when it is missing."""
        path = self.folder / str(version) / (self.config.default_model_filename or ONNX)
        return path.stat().st_size if path.is_file() else 0

    @property
    def digest(self) -> str | None:
        """sha256 of the artifact, where its writer recorded it."""
        found = self.config.parameters.get(DIGEST_PARAMETER)
        return found.string_value if found else None


def write_repository(  # noqa: PLR0913 a model's publication has this many independent facts
    root: Path,
    *,
    name: str,
    onnx: Path,
    signature: Signature,
    serving: Serving,
    hardware: Hardware,
    digest: str,
    profile: Profile,
    version: int = 1,
    threads: int | None = None,
    sign: Sign | None = None,
) -> Path:
    """Write one model; a model of the same name is replaced as a whole.

    Args:
        root: the repository; made when missing.
        name: model name: letters, digits, `.`, `_`, `-`.
        onnx: the file to serve; self-contained (no external data).
        signature: its inputs and outputs, with the batch dimension.
        serving: mode and batch settings.
        hardware: where it runs.
        digest: sha256 of the artifact, recorded in the configuration.
        profile: which backend runs it.
        version: 1 or more.
        threads: threads of one inference; by default the backend's choice.
        sign: makes the envelope that is put beside the files; by default they are not signed.

    Returns:
        The model's folder.

    Raises:
        InputError: the name could leave the repository, the file is missing, or the mode does not fit the model.
        ProvenanceError: what is about to be published is not what was built.
        RepositoryError: the disk refuses (full, no permission). Nothing half-written is left.
    """
    check_name(name)
    if version < 1:
        raise InputError("version", str(version), "Write 1 or more.")
    if not onnx.is_file():
        raise InputError(str(onnx), "no such file", "Give an ONNX file.")
    config = build_config(
        name=name,
        signature=signature,
        serving=serving,
        hardware=hardware,
        digest=digest,
        profile=profile,
        threads=threads,
    )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _staging(root) as aside:
            folder = aside / "model"
            weights = folder / str(version)
            weights.mkdir(parents=True)
            _copy(onnx, weights / ONNX)
            if profile is Profile.PYTHON:
                _copy(_PYTHON_MODEL, weights / "model.py")
            _write(folder / CONFIG, config_text(config).encode())
            if sign is not None:
                _sign(folder, f"{version}/{ONNX}", digest, sign)
            for written in (weights, folder):
                _flush(written)
            _swap(folder, root / name, aside / "old")
            _flush(root)
    except OSError as error:
        raise RepositoryError(f"{root}: the model repository cannot be written: {error}") from error
    return root / name


def read_repository(root: Path, verifier: Verifier | None = None) -> tuple[StoredModel, ...]:
    """The models of a repository, by name. Hidden folders are no models.

    Args:
        root: the repository.
        verifier: accept only models whose provenance is signed with this key.

    Raises:
        ProvenanceError: a model is not signed with the key, or its configuration is not the one that was.
        InputError: the folder is missing, or a model in it has no usable configuration or version.
    """
    return tuple(_read(root / name, verifier) for name in model_names(root))


def model_names(root: Path) -> tuple[str, ...]:
    """Names of the model folders of a repository, sorted.

    Raises:
        InputError: the folder is missing.
    """
    if not root.is_dir():
        raise InputError(str(root), "no such folder", "Give a model repository (flag --repository).")
    return tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))


def read_model(root: Path, name: str, verifier: Verifier | None = None) -> StoredModel:
    """One model of a repository; `verifier` as for `read_repository`.

    Raises:
        ProvenanceError: the model is not signed with the key, or its configuration is not the one that was.
        InputError: the name could leave the repository, there is no such model, or it has no usable configuration.
    """
    check_name(name)
    if name not in model_names(root):
        raise InputError(str(root), f"no model {name!r}", "Publish it first.")
    return _read(root / name, verifier)


def check_name(name: str) -> None:
    """Refuse names that are no plain folder name.

    Raises:
        InputError: as said.
    """
    if not _NAME.fullmatch(name):
        raise InputError("model name", repr(name), "Start with a letter or digit; go on with letters, digits, . _ -")


def _read(folder: Path, verifier: Verifier | None) -> StoredModel:
    path = folder / CONFIG
    attested = None
    try:
        content = path.read_bytes()
        if verifier is not None:
            signed = provenance.opened(provenance.read_envelope(folder), verifier, str(folder / provenance.ENVELOPE))
            attested = provenance.subjects_of(signed)
            # The very bytes that are used, so that nobody can change them in between.
            provenance.compare(path, f"sha256:{hashlib.sha256(content).hexdigest()}", attested.get(CONFIG))
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read: {error}", "Every model folder needs its config.pbtxt.") from error
    config = parse_config(text, str(path))
    if config.name not in {"", folder.name}:
        raise InputError(str(path), f"name: {config.name!r}", f"Write {folder.name!r}, the name of its folder.")
    config.name = folder.name
    check_name(folder.name)
    present = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and _VERSION.fullmatch(path.name))
    versions = _served(config, present)
    if not versions:
        raise InputError(str(folder), f"no version to serve among {present}", "Add a folder named 1 with the model.")
    return StoredModel(folder, config, versions, attested)


def _served(config: ModelConfig, present: list[int]) -> tuple[int, ...]:
    policy = config.version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return tuple(present)
        case "specific":
            return tuple(version for version in present if version in policy.specific.versions)
        case _:
            return tuple(present[-max(policy.latest.num_versions, 1) :])


def _sign(folder: Path, model: str, built: str, sign: Sign) -> None:
    found = provenance.digests(folder)
    provenance.compare(folder / model, found.get(model), built)
    _write(folder / provenance.ENVELOPE, sign(found))


@contextlib.contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A hidden folder on the same file system, removed afterwards; and so is what a killed writer left.

    One writer at a time: whoever holds the lock of the repository knows that every other such folder is abandoned.
    The lock ends with the process, whatever ended it.
    """
    lock = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in root.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        os.close(lock)


def _swap(new: Path, place: Path, old: Path) -> None:
    # rename() replaces no folder that has content; the old one steps aside, and comes back should the second step fail.
    replaced = False
    with contextlib.suppress(FileNotFoundError):
        place.rename(old)
        replaced = True
    try:
        new.rename(place)
    except OSError:
        if replaced:
            old.rename(place)
        raise


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    _flush(target)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
