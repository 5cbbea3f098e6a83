"""Opens what a document declares, and splits it by seed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lathe_api.data import Data, DataFormat, DataSource
from lathe_optimizers.context import Dataset, Datasets
from lathe_optimizers.datasets.images import ImageFolder
from lathe_optimizers.datasets.npz import open_npz
from lathe_optimizers.datasets.parquet import open_parquet
from lathe_optimizers.datasets.sources import Subset, targets
from lathe_optimizers.errors import InputError

ENDINGS: Final = {".npz": DataFormat.NPZ, ".parquet": DataFormat.PARQUET}
MAX_CLASSES: Final = 10_000
"""Integer targets with more values than this are split without regard to them."""


def open_datasets(data: Data, locate: Callable[[str, DataSource], Path], seed: int) -> Datasets:
    """All data sets of a document.

    Args:
        data: the declaration.
        locate: local path of a data set, from its field path and declaration.
        seed: decides which training samples are held out, and which calibrate.

    Raises:
        InputError: a set cannot be read.
    """
    classes: Sequence[str] | None = None

    def opened(field: str, source: DataSource) -> Dataset:
        return open_source(field, source, locate(field, source), classes)

    train = validation = calibration = None
    if data.train is not None:
        whole = opened("spec.data.train", data.train)
        classes = whole.classes if isinstance(whole, ImageFolder) else None
        kept, held = split(targets(whole), float(data.validation_share), seed)
        train, validation = Subset(whole, kept), Subset(whole, held)
    evaluation = opened("spec.data.evaluation", data.evaluation)
    if data.calibration.source is not None:
        own = opened("spec.data.calibration.source", data.calibration.source)
        calibration = Subset(own, evenly(targets(own), data.calibration.samples, seed))
    elif train is not None:
        calibration = Subset(train, evenly(targets(train), data.calibration.samples, seed))
    return Datasets(evaluation=evaluation, train=train, validation=validation, calibration=calibration)


def open_source(field: str, source: DataSource, path: Path, classes: Sequence[str] | None = None) -> Dataset:
    """One data set; `classes` numbers the folders of images where another set has done so already.

    Raises:
        InputError: it cannot be read, or its format is not known.
    """
    kind = source.format or (DataFormat.IMAGE_FOLDER if path.is_dir() else ENDINGS.get(path.suffix.lower()))
    match kind:
        case DataFormat.NPZ:
            return open_npz(field, source, path)
        case DataFormat.PARQUET:
            return open_parquet(field, source, path)
        case DataFormat.IMAGE_FOLDER if path.is_dir():
            return ImageFolder(field, source, path, classes)
        case DataFormat.IMAGE_FOLDER:
            raise InputError(f"{field}.uri", f"{path.name} is a file", "Write the folder that holds the class folders")
        case None:
            raise InputError(f"{field}.format", f"nothing, and {path.name} does not tell", "Write Npz or Parquet")
        case _:
            raise InputError(
                f"{field}.format", f"{kind} is not available in this version", "Write Npz, Parquet or ImageFolder"
            )


def split(target: NDArray[np.generic], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices that are kept and that are held out; of each class the same share, where targets are classes.

    Nothing is held out of fewer than ten samples.
    """
    rng = np.random.default_rng(seed)
    count = len(target)
    size = round(count * share) if count >= 10 else 0  # noqa: PLR2004 - see above
    order = _interleaved(target, rng)
    # Taking evenly spaced entries out of the interleaved order takes evenly out of every class.
    held = order[np.linspace(0, count - 1, size).astype(np.int64)] if size else order[:0]
    kept = np.setdiff1d(np.arange(count, dtype=np.int64), held)
    return kept, np.sort(held)


def evenly(target: NDArray[np.generic], samples: int, seed: int) -> NDArray[np.int64]:
    """At most `samples` indices, evenly over the classes, in an order that mixes them."""
    order = _interleaved(target, np.random.default_rng(seed))
    if not len(order):
        return order
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(samples, len(order))).astype(np.int64))]
    return np.asarray(np.random.default_rng(seed).permutation(chosen), np.int64)


def _interleaved(target: NDArray[np.generic], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order, sorted by class where targets are classes."""
    order = rng.permutation(len(target)).astype(np.int64)
    if target.ndim == 1 and np.issubdtype(target.dtype, np.integer) and len(np.unique(target)) <= MAX_CLASSES:
        return order[np.argsort(target[order], kind="stable")]
    return order
