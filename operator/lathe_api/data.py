"""What a model is trained, calibrated and judged on."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, model_validator

from lathe_api.base import ApiModel, Decimal, Digest, FieldName, Name, Positive, Share, Uri
from lathe_api.findings import Finding, duplicates, exactly_one, refuse


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
    ECE = "ece"
    """Expected calibration error; of gates, not of objectives."""


class TensorLayout(StrEnum):
    """Order of the dimensions of an image tensor, after the batch."""

    CHANNELS_FIRST = "ChannelsFirst"
    CHANNELS_LAST = "ChannelsLast"


class ColorMode(StrEnum):
    """Channels of an image."""

    RGB = "Rgb"
    GRAY = "Gray"


class ImageType(StrEnum):
    """Element type of an image tensor."""

    UINT8 = "Uint8"
    """0 to 255, as stored: four times fewer bytes on the wire than Float32."""
    FLOAT32 = "Float32"
    """0 to 1, before mean and deviation are applied."""


class Resample(StrEnum):
    """How pixels between pixels are computed."""

    NEAREST = "Nearest"
    BILINEAR = "Bilinear"
    BICUBIC = "Bicubic"


TASK_METRICS: Final = {
    Task.CLASSIFICATION: (Metric.ACCURACY, Metric.MACRO_F1),
    Task.REGRESSION: (Metric.RMSE, Metric.MAE, Metric.R2),
}
"""Which quality metrics a task has."""
GATE_METRICS: Final = {**TASK_METRICS, Task.CLASSIFICATION: (*TASK_METRICS[Task.CLASSIFICATION], Metric.ECE)}
"""Which metrics of the answers a gate of a task may bound."""


class ModelSource(ApiModel):
    """The trained model to optimise."""

    uri: Uri
    """Where the model file is."""
    format: ModelFormat
    """How it is stored."""
    digest: Digest | None = None
    """sha256 of the file: verified when given, recorded when not."""
    architecture: Name | None = None
    """Safetensors: name of the registered architecture that the weights belong to."""

    @model_validator(mode="after")
    def _weights_need_an_architecture(self) -> "ModelSource":
        bare = self.format is ModelFormat.SAFETENSORS
        if bare and self.architecture is None:
            refuse("model", [Finding(("architecture",), "nothing", "write the registered name of the network")])
        if not bare and self.architecture is not None:
            remedy = f"remove it: a {self.format} file holds its architecture"
            refuse("model", [Finding(("architecture",), self.architecture, remedy)])
        return self


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

    @model_validator(mode="after")
    def _inputs_differ(self) -> "DataSource":
        refuse("data", duplicates((i.name for i in self.inputs), "inputs"))
        return self


class CalibrationSource(ApiModel):
    """Samples that static quantisation measures activation ranges on."""

    from_: Annotated[DataOrigin | None, Field(alias="from")] = None
    """Take the samples out of this set, evenly and by seed."""
    source: DataSource | None = None
    """Or take a set of its own."""
    samples: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """How many samples at the most."""

    @model_validator(mode="after")
    def _one_origin(self) -> "CalibrationSource":
        given = [name for name, value in (("from", self.from_), ("source", self.source)) if value is not None]
        refuse("calibration", exactly_one((), given, ("from", "source")))
        return self


class ImagePreprocessing(ApiModel):
    """How a picture becomes a tensor: decode, resize, order the channels, subtract the mean, divide."""

    width: Annotated[int, Field(ge=1, le=16_384)]
    """Pixels."""
    height: Annotated[int, Field(ge=1, le=16_384)]
    """Pixels."""
    color: ColorMode = ColorMode.RGB
    """Channels."""
    layout: TensorLayout = TensorLayout.CHANNELS_FIRST
    """Order of the dimensions."""
    type: ImageType = ImageType.FLOAT32
    """Element type of the tensor."""
    resample: Resample = Resample.BILINEAR
    """How the picture is resized."""
    mean: Annotated[tuple[Decimal, ...], Field(max_length=3)] = ()
    """Float32: subtracted per channel, in units of 0 to 1; by default nothing."""
    deviation: Annotated[tuple[Positive, ...], Field(max_length=3)] = ()
    """Float32: what each channel is divided by afterwards; by default nothing."""

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> "ImagePreprocessing":
        channels = 3 if self.color is ColorMode.RGB else 1
        findings = []
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if values and self.type is ImageType.UINT8:
                findings.append(Finding((name,), "numbers for Uint8", "remove them, or write type: Float32"))
            elif values and len(values) != channels:
                findings.append(Finding((name,), f"{len(values)} numbers", f"write {channels}, one for each channel"))
        refuse("image", findings)
        return self


class PreprocessingType(StrEnum):
    """What an input is made from."""

    IMAGE = "Image"


class Preprocessing(ApiModel):
    """How raw data becomes one network input, in training and in the client alike.

    Image folders are read by it and the client SDK applies it before it sends; arrays are taken as they are.
    """

    input: FieldName
    """Name of the network's input."""
    type: PreprocessingType
    """What the input is made from."""
    image: ImagePreprocessing | None = None
    """Settings of Image."""

    @model_validator(mode="after")
    def _one_block(self) -> "Preprocessing":
        refuse("preprocessing", exactly_one((), ["image"] if self.image else [], ("image",)))
        return self


class Data(ApiModel):
    """The data sets of a document."""

    train: DataSource | None = None
    """Needed by stages that train."""
    calibration: CalibrationSource = CalibrationSource(from_=DataOrigin.TRAIN)
    """Needed by static quantisation."""
    evaluation: DataSource
    """Never trained on; every gate is judged on it."""
    slices: FieldName | None = None
    """Field of the evaluation set that says which slice a sample belongs to, such as a site or a device, for gates on
    worstSliceDrop; by default its class."""
    validation_share: Share = "0.1"
    """Share of the training set that is held out to choose between candidates (never the evaluation set)."""
    preprocessing: Annotated[tuple[Preprocessing, ...], Field(max_length=32)] = ()
    """How raw data becomes network inputs; by default data is stored ready to use."""

    @model_validator(mode="after")
    def _inputs_differ(self) -> "Data":
        refuse("data", duplicates((p.input for p in self.preprocessing), "preprocessing", field="input"))
        return self


class Objective(ApiModel):
    """What the model is for."""

    task: Task
    """What the answer means."""
    metric: Metric
    """What the gates of the task are measured in."""

    @model_validator(mode="after")
    def _metric_fits(self) -> "Objective":
        fitting = TASK_METRICS[self.task]
        if self.metric not in fitting:
            remedy = f"write {' or '.join(fitting)} for {self.task}"
            refuse("objective", [Finding(("metric",), self.metric, remedy)])
        return self
