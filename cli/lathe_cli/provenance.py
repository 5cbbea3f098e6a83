"""What a run says about the files that it publishes, and `lathe verify`."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from lathe_api.canonical import plain
from lathe_api.manifest import StageRecord
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.summary import TargetResult, TargetState
from lathe_api.targets import Target
from lathe_api.wiring import SIGNING_KEY
from lathe_cli.summaries import read_summary
from lathe_runtimes.errors import InputError
from lathe_runtimes.provenance import (
    ENVELOPE,
    ProvenanceError,
    Signer,
    Statement,
    Verifier,
    check_folder,
    compare,
    digest_of,
    load_signer,
    load_verifier,
    opened,
    read_envelope,
    seal,
    statement,
)
from lathe_runtimes.repository import CONFIG, ONNX, Sign

BUILD_TYPE: Final = "https://lathe.dev/build/v1"
BUILDER: Final = "https://lathe.dev/run/v1"


def signer_of(path: Path | None, environment: Mapping[str, str] = os.environ) -> Signer | None:
    """The key that `--signing-key` or `LATHE_SIGNING_KEY` names, if any.

    Raises:
        InputError: it cannot be used.
    """
    if path is not None:
        return load_signer(path, "--signing-key")
    named = environment.get(SIGNING_KEY)
    return load_signer(Path(named), SIGNING_KEY) if named else None


def signing(
    signer: Signer | None,
    document: OptimizedModel,
    folder: Path,
    target: Target,
    result: TargetResult,
    record: StageRecord,
) -> Sign | None:
    """How the repository of a target is signed; None without a key.

    Args:
        signer: the key.
        document: what was asked for.
        folder: of the run, with the records of all stages.
        target: what it was built for.
        result: what came of it.
        record: of the last stage.
    """
    if signer is None:
        return None
    predicate = _predicate(document, folder, target, result, record)

    def sign(subjects: Mapping[str, str]) -> bytes:
        envelope = seal(statement(subjects, predicate), signer)
        opened(envelope, signer.verifier, ENVELOPE)
        return envelope

    return sign


def _predicate(
    document: OptimizedModel, folder: Path, target: Target, result: TargetResult, record: StageRecord
) -> Statement:
    asked = plain({"document": document.model_copy(update={"status": None}), "target": target.name})
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": asked,
            "internalParameters": plain(
                {"seed": record.seed, "hardware": record.hardware, "versions": record.versions}
            ),
            "resolvedDependencies": [
                {"name": field, "digest": {"sha256": digest.removeprefix("sha256:")}}
                for field, digest in sorted(record.inputs.items())
            ],
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"lathe-platform": version("lathe-platform")}},
            "metadata": {
                "invocationId": record.key,
                "finishedOn": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            },
            "byproducts": [
                *(
                    {
                        "name": stage.record,
                        "digest": {"sha256": digest_of(folder / stage.record).removeprefix("sha256:")},
                        "annotations": {
                            "key": stage.key,
                            "metrics": stage.metrics.model_dump(mode="json", by_alias=True),
                        },
                    }
                    for stage in result.stages
                ),
                {
                    "name": "gates",
                    "annotations": {"verdicts": [g.model_dump(mode="json", by_alias=True) for g in result.gates]},
                },
            ],
        },
    }


def verify(options: argparse.Namespace) -> int:
    """Verify the signature and every file of a finished run, or of a model repository.

    Raises:
        InputError: the folder holds neither, or the key cannot be used.
        ProvenanceError: something is not as it was signed.
    """
    verifier = load_verifier(options.key, "--key")
    folder: Path = options.folder
    told = _run if (folder / "summary.json").is_file() else _repository
    lines = list(told(folder, verifier))
    if not lines:
        raise InputError(str(folder), "nothing in it was published", "Name a run that built a target, or a repository")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def check(repository: Path, verifier: Verifier) -> None:
    """Verify all models of a repository before a server is started.

    Raises:
        ProvenanceError: something is not as it was signed.
    """
    for _ in _repository(repository, verifier):
        pass


def _repository(root: Path, verifier: Verifier) -> Iterator[str]:
    for config in sorted(root.glob(f"*/{CONFIG}")):
        content = check_folder(config.parent, verifier)
        yield f"{config.parent}: {len(content['subject'])} files as signed by {verifier.key_id[:16]}…"


def _run(folder: Path, verifier: Verifier) -> Iterator[str]:
    for target in read_summary(folder).targets:
        if target.state is not TargetState.BUILT or target.model_file is None:
            continue
        root = folder / (target.repository or "")
        if target.repository is None or not root.is_dir():
            raise ProvenanceError(f"{folder}: the repository of target {target.name} is not in the run folder")
        yield from _repository(root, verifier)
        for config in root.glob(f"*/{CONFIG}"):
            content = opened(read_envelope(config.parent), verifier, str(config.parent / ENVELOPE))
            for path, promised in _beside(folder, target, content):
                compare(path, digest_of(path) if path.is_file() else None, promised)


def _beside(folder: Path, target: TargetResult, content: Statement) -> Iterator[tuple[Path, str]]:
    """Files of the run folder outside of the repository that the statement tells the digests of."""
    for subject in content["subject"]:
        if subject["name"].endswith(f"/{ONNX}"):
            yield folder / str(target.model_file), _sha256(subject)
    for product in content["predicate"]["runDetails"]["byproducts"]:
        if "digest" in product:
            yield folder / product["name"], _sha256(product)


def _sha256(resource: Mapping[str, Any]) -> str:
    return f"sha256:{resource['digest']['sha256']}"
