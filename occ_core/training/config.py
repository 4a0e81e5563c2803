"""The settings of a training run: one YAML file that overrides these defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from occ_core.errors import InvalidInput
from occ_core.losses.weights import Weight
from occ_core.models.build import ModelConfig, parse_config
from occ_core.models.earlier_names import with_todays_settings
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.settings import NanoTraining, NotNegative, Positive, Share
from occ_core.shipped import config_file


class TrainingConfig(BaseModel):
    """One training run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # the class follows from its `kind`; without one it is EasyOcc nano
    model: SerializeAsAny[ModelConfig] = EasyOccConfig()
    data: tuple[Path, ...] = ()  # folders in nuScenes layout, ROS 2 bags, SemanticKITTI
    version: str | None = None  # table folder of data in nuScenes layout, v1.0-mini and the like; None: the only one
    labels: str = "gts"  # folder of Occ3D labels in each, or a path; "voxels": SemanticKITTI's
    unlabelled: bool = False  # also train on samples without labels, with losses that need none
    pseudo_labels: str | None = None  # folder or path of labels that `occ labels make` made, for samples without label
    # share of the samples that steps take which are labelled; None: each sample is taken as often as any other
    labelled_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    validation: tuple[Path, ...] = ()  # default: the last `validation_scenes` scenes of `data`
    validation_labels: str | None = None  # default: as `labels`, which may be pseudo-labels
    validation_scenes: NotNegative | tuple[str, ...] = 10  # how many, or the names of those that are held out
    teacher: str | None = None  # gives class maps and depth, such as `realistic` or `grounded-sam+metric3d`
    teacher_seed: int = 0  # seed of the errors of `realistic`; labels made with the same seed have the same errors
    teacher_weights: Path | None = None  # folder of its networks' weights
    start_from: Path | None = None  # checkpoint of the same network, whose weights replace random ones
    cache: Path | None = None  # folder for decoded data and teachers' maps; default: in the user's cache folder
    cameras: tuple[str, ...] = ()  # cameras of bags to use, by name or topic; default: all that can be used
    exclude: tuple[str, ...] = ()  # cameras of bags to leave out
    strict: bool = False  # stop at the first part of a bag that would be left out
    steps: Positive = 8000
    batch_size: Positive = 1  # samples at once, in each process
    accumulate: Positive = 1  # batches whose gradients make one step
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    backbone_lr_scale: Weight = 1.0  # learning rate of the image network's backbone, as a multiple of learning_rate
    freeze_stem: bool = False  # keep the weights of a pretrained backbone before stride 8, which saves time
    warmup_steps: NotNegative = 200
    weight_decay: Weight = 0.02
    clip_norm: Annotated[float, Field(gt=0)] = 10.0  # largest norm of the gradient
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    color_jitter: Share = 0.2
    camera_dropout: Share = 0.02
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: Positive = 2  # CPU threads of each process
    workers: NotNegative = 0  # processes that read data, for each process that trains
    log_every: Positive = 20
    checkpoint_every: Positive = 500
    validate_every: Positive = 2000
    nano: NanoTraining = NanoTraining()

    @model_validator(mode="after")
    def _pseudo_labels_are_used(self) -> TrainingConfig:
        if self.pseudo_labels is not None and not self.unlabelled:
            raise ValueError("pseudo_labels are of samples without label: set unlabelled: true")
        return self

    @field_validator("model", mode="before")
    @classmethod
    def _model_of_its_kind(cls, value: Any) -> Any:
        return value if isinstance(value, BaseModel) else parse_config(value)


def load_config(path: Path | str, **changes: Any) -> TrainingConfig:
    """Read a run from its YAML file, or from the name of one that ships; `changes` that are not None win over the file.

    Raises:
        MissingInput: no such file.
        InvalidInput: one line that names the first wrong field.
    """
    path = config_file(path)
    try:
        record = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"{path}: must be a mapping of field to value, is a {type(record).__name__}")
    try:
        if "model" in record:
            record["model"] = parse_config(record["model"])
        record = with_todays_settings(record)
        return TrainingConfig(**{**record, **{key: value for key, value in changes.items() if value is not None}})
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{path}: {where}: {first['msg']}, got {first['input']!r:.80}") from error


def with_steps(config: TrainingConfig, total: int, begun: tuple[int, int] | None = None) -> TrainingConfig:
    """Return the same run with `total` steps in all its phases together; each phase keeps its share of them.

    Args:
        begun: steps and image_steps of a run that goes on. Before, `--steps` did not count image_steps; a run that was
            started so is meant as it was.
    """
    nano = config.nano
    if begun == (total, nano.image_steps):
        return config.model_copy(update={"steps": total})
    whole = config.steps + nano.image_steps
    image = nano.image_steps * total // whole
    memory = nano.memory_steps and max(1, nano.memory_steps * total // whole)
    parts = nano.model_copy(update={"image_steps": image, "memory_steps": memory})
    return config.model_copy(update={"steps": total - image, "nano": parts})


def difference(name: str, was: Any, now: Any) -> str | None:
    """Name the first difference between two settings, comparing mappings entry by entry; None means that they are
    equal."""
    if isinstance(was, dict) and isinstance(now, dict):
        parts = (difference(key, was.get(key), now.get(key)) for key in {**was, **now})
        return next((part for part in parts if part), None)
    return None if was == now else f"its run has {name} {was}, this one {now}"
