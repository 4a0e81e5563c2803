"""What the configs of all camera networks share. It imports no torch, so that a deployment can read configs without
it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from occ_core.errors import InvalidInput
from occ_core.frame import FULL_INTENSITY
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.limits import MAX_MODEL_CELLS
from occ_core.taxonomy import TAXONOMIES, Taxonomy

if TYPE_CHECKING:
    from occ_core.models.easyocc.settings import NanoTraining

Count = Annotated[int, Field(gt=0, le=4096)]
Backbone = Literal["mobilenetv4-small", "efficientnet-lite0", "resnet18", "resnet50", "resnet101"]
IMAGENET = "imagenet"
BackboneWeights = Annotated[Literal["imagenet"] | Path | None, Field(union_mode="left_to_right")]
"""A safetensors file, or "imagenet": what a package brings for this backbone. Read when training starts only."""
Config = TypeVar("Config", bound=BaseModel)


class LidarInput(BaseModel):
    """The LiDAR input of a network, made by `occ_core.lidar_points`. A network trained with dropout also works without
    it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sweeps: Annotated[int, Field(gt=0, le=100)] = 1  # the newest at or before the sample, and those before it
    points: Annotated[int, Field(gt=0, le=2_000_000)] = 120_000  # at most; of more, always the same random ones
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the training samples that are given no cloud
    # of a return, as the driver of bags and of the robot counts; nuScenes and SemanticKITTI say it themselves
    intensity_max: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] = FULL_INTENSITY


class Phase(NamedTuple):
    """A part of a run: `steps` on samples of one kind, with a learning rate that rises and falls."""

    samples: Literal["samples", "images", "sequences"]  # whole; single images of any camera; samples in a row
    steps: int


class NetworkConfig(BaseModel):
    """The settings that every network from camera images to cells has; each adds its own fields and a `kind`.

    Attributes:
        by_table: it is given a rig as a table (`models.easyocc.table`), which has to be built, instead of as matrices.
        fitted: its tensors that its method `fit` sets on held-out samples, and that are no averages of weights.
        pixel_ratio_limit: how far apart class weights in its losses on pixels may be.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    input_multiple: ClassVar[int] = 16  # pixels
    by_table: ClassVar[bool] = False
    fitted: ClassVar[frozenset[str]] = frozenset()
    pixel_ratio_limit: ClassVar[float] = 20.0

    name: str
    grid_origin_m: tuple[float, float, float] = OCC3D_GRID.origin_m
    voxel_size_m: float = OCC3D_GRID.voxel_size_m
    grid_shape: tuple[Count, Count, Count] = OCC3D_GRID.shape
    taxonomy: str = "occ3d"
    input_width: Count = 672
    input_height: Count = 336

    @model_validator(mode="after")
    def _check_network(self):
        if self.taxonomy not in TAXONOMIES:
            raise ValueError(f"taxonomy '{self.taxonomy}' is not one of {', '.join(TAXONOMIES)}")
        require_feasible(self.grid)
        if self.input_width % self.input_multiple or self.input_height % self.input_multiple:
            size = f"{self.input_width} x {self.input_height}"
            raise ValueError(f"input must be a multiple of {self.input_multiple} px, got {size}")
        return self

    @property
    def grid(self) -> VoxelGrid:
        return VoxelGrid(self.grid_origin_m, self.voxel_size_m, self.grid_shape)

    @property
    def classes(self) -> Taxonomy:
        return TAXONOMIES[self.taxonomy]

    @property
    def lidar_input(self) -> LidarInput | None:
        """The LiDAR input of the network; None if it takes none."""
        return None

    @property
    def mean_teacher(self) -> bool:
        """Whether the losses also ask the averaged network."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether the network uses what it kept of earlier frames."""
        return False

    def phases(self, steps: int, nano: NanoTraining) -> tuple[Phase, ...]:
        """The phases of a run of `steps`, in order; only the weights of the last one are validated and shipped.

        Raises:
            InvalidInput: settings that do not fit the network.
        """
        return (Phase("samples", steps),)


class CameraModelConfig(NetworkConfig):
    """The settings of a network that reads images and calibration of a rig (`RigImages`) and has a choice of
    backbones."""

    takes_lidar: ClassVar[bool] = False

    backbone: Backbone = "resnet101"
    backbone_weights: BackboneWeights = None
    lidar: LidarInput | None = None  # None: of cameras alone

    @model_validator(mode="after")
    def _check_lidar(self):
        if self.lidar is not None and not self.takes_lidar:
            raise ValueError(f"a network of kind '{getattr(self, 'kind', '?')}' takes no LiDAR, its config names one")
        return self

    def feature_size(self, stride: int) -> tuple[int, int]:
        """(width, height) of a feature map of this stride."""
        return self.input_width // stride, self.input_height // stride

    @property
    def lidar_input(self) -> LidarInput | None:
        return self.lidar


def require_feasible(grid: VoxelGrid) -> None:
    """Raise InvalidInput if the grid has more cells than any network can answer."""
    if grid.cells > MAX_MODEL_CELLS:
        raise InvalidInput(f"grid_shape {grid.shape} has {grid.cells} cells, a model's at most {MAX_MODEL_CELLS}")


def parse(config_type: type[Config], record: dict, what: str = "model config") -> Config:
    """Validate a config given as a plain dict.

    Raises:
        InvalidInput: one line that names the first wrong field.
    """
    try:
        return config_type(**record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "model"
        raise InvalidInput(f"{what}: {where}: {first['msg']}") from error
    except TypeError as error:
        raise InvalidInput(f"{what} must be a mapping of field to value: {error}") from error
