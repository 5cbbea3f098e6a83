"""Image folders: one folder per class, named after it; classes are numbered by the sorted names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lathe_api.data import DataSource
from lathe_optimizers.context import Batch
from lathe_optimizers.errors import InputError

ENDINGS: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
MAX_PIXELS: Final = 50_000_000


class ImageFolder:
    """Images read when they are asked for: float32 of shape (samples, channels, height, width), 0 to 1.

    Args:
        field: field path of the data set, for errors.
        source: its declaration.
        root: the folder that holds the class folders.
        classes: names by number, where another set of the document has numbered them already.

    Raises:
        InputError: a class that the other set does not have, or more than one input.
    """

    def __init__(self, field: str, source: DataSource, root: Path, classes: Sequence[str] | None = None) -> None:
        if len(source.inputs) != 1 or source.inputs[0].field != "image":
            raise InputError(f"{field}.inputs", "an image folder feeds one input", "Write one input with field: image")
        self.field = field
        self.name = source.inputs[0].name
        own = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        self.classes = own if classes is None else list(classes)
        for name in own:
            if name not in self.classes:
                raise InputError(
                    f"{field}.uri",
                    f"the class folder {name}",
                    f"The training set has the classes {', '.join(self.classes)}: name the folder so, or remove it",
                )
        found = [
            (file, number)
            for number, name in enumerate(self.classes)
            for file in sorted((root / name).rglob("*") if (root / name).is_dir() else ())
            if file.suffix.lower() in ENDINGS
        ]
        self.files = [file for file, _ in found]
        self.labels = np.array([number for _, number in found], np.int64)
        self.shape = self._read(self.files[0]).shape if self.files else ()

    @property
    def input_names(self) -> tuple[str, ...]:
        """The one input."""
        return (self.name,)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """The images at `indices`.

        Raises:
            InputError: an image cannot be read or has another size than the first.
        """
        images = [self._read(self.files[int(i)]) for i in indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape != self.shape:
                raise InputError(
                    self.field,
                    f"{self.files[int(index)].name} has shape {image.shape}, the first image {self.shape}",
                    "Give all images one size and colour mode",
                )
        stacked = np.stack(images) if images else np.empty((0, *self.shape), np.float32)
        return (stacked,), self.labels[indices]

    def _read(self, file: Path) -> NDArray[np.float32]:
        image = _pillow(self.field)
        try:
            with image.open(file) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise InputError(
                        self.field, f"{file.name} has {picture.width}x{picture.height} pixels", "Give smaller images"
                    )
                gray = picture.mode in {"1", "L", "I;16"}
                pixels = np.asarray(picture.convert("L" if gray else "RGB"), np.float32) / 255
        except (OSError, SyntaxError, image.DecompressionBombError) as error:
            raise InputError(self.field, f"{file.name} is no readable image ({error})", "Remove or mend it") from error
        channels_first = pixels[None] if gray else pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(channels_first, np.float32)


def _pillow(field: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(field, "reading images needs Pillow", 'Install "lathe-platform[data]"') from error
    return Image
