"""What a model is trained, calibrated and judged on."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lathe_api.base import ApiModel, Digest, FieldName, Share, Uri


class ModelFormat(StrEnum):
    """How the given model is stored."""

    PT2 = "Pt2"
    ONNX = "Onnx"
    KERAS = "Keras"
    SAVED_MODEL = "SavedModel"
    SKLEARN = "Sklearn"
    XGBOOST = "XGBoost"
    LIGHTGBM = "LightGBM"
    SAFETENSORS = "Safetensors"


class DataFormat(StrEnum):
    """How a data set is stored."""

    NPZ = "Npz"
    PARQUET = "Parquet"
    IMAGE_FOLDER = "ImageFolder"


class DataOrigin(StrEnum):
    """Another data set of the same document that a set is taken from."""

    TRAIN = "Train"


class Task(StrEnum):
    """What the model's answer means."""

    CLASSIFICATION = "Classification"
    REGRESSION = "Regression"


class Metric(StrEnum):
    """How good an answer is, over the evaluation set."""

    ACCURACY = "accuracy"
    MACRO_F1 = "macroF1"
    RMSE = "rmse"
    MAE = "mae"
    R2 = "r2"


class ModelSource(ApiModel):
    """The trained model to optimise."""

    uri: Uri
    """Where the model file is."""
    format: ModelFormat
    """How it is stored."""
    digest: Digest | None = None
    """sha256 of the file: verified when given, recorded when not."""


class InputField(ApiModel):
    """One network input and the field of the data that feeds it."""

    name: FieldName
    """Name of the network's input, as clients will send it."""
    field: FieldName
    """Array (npz) or column (Parquet) that holds it; `image` for an image folder."""


class DataSource(ApiModel):
    """A stored data set: samples along the first dimension."""

    uri: Uri
    """Where the file or folder is."""
    format: DataFormat | None = None
    """How it is stored; by default read off the name (.npz, .parquet, a folder of class folders)."""
    digest: Digest | None = None
    """sha256 of the file, or of the sorted list of file digests of a folder: verified when given."""
    inputs: Annotated[tuple[InputField, ...], Field(min_length=1, max_length=32)]
    """Which field feeds which network input."""
    target: FieldName
    """Field with the truth: class numbers from 0, or values."""


class CalibrationSource(ApiModel):
    """Samples that static quantisation measures activation ranges on."""

    from_: Annotated[DataOrigin | None, Field(alias="from")] = None
    """Take the samples out of this set, evenly and by seed."""
    source: DataSource | None = None
    """Or take a set of its own."""
    samples: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """How many samples at the most."""


class Data(ApiModel):
    """The data sets of a document."""

    train: DataSource | None = None
    """Needed by stages that train."""
    calibration: CalibrationSource = CalibrationSource(from_=DataOrigin.TRAIN)
    """Needed by static quantisation."""
    evaluation: DataSource
    """Never trained on; every gate is judged on it."""
    validation_share: Share = "0.1"
    """Share of the training set that is held out to choose between candidates (never the evaluation set)."""


class Objective(ApiModel):
    """What the model is for."""

    task: Task
    """What the answer means."""
    metric: Metric
    """What the gates of the task are measured in."""
