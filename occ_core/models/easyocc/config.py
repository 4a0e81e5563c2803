"""The shape of an EasyOcc network. It imports no torch, so that a deployment with onnxruntime alone can read it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from occ_core.errors import InvalidInput
from occ_core.limits import MAX_MODEL_CELLS
from occ_core.models.config import Backbone, BackboneWeights, Count, NetworkConfig, Phase, parse
from occ_core.models.easyocc.settings import NanoTraining

STRIDE = 8  # pixels of the network's input per cell of the feature map


class EasyOccConfig(NetworkConfig):
    """All settings that decide the weights' shapes and the table; the defaults are the size `nano`."""

    input_multiple: ClassVar[int] = 32
    by_table: ClassVar[bool] = True
    fitted: ClassVar[frozenset[str]] = frozenset({"balance", "threshold", "class_bias", "observed_threshold"})
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    pixel_ratio_limit: ClassVar[float] = 10.0

    kind: Literal["easyocc-nano"] = "easyocc-nano"
    name: str = "easyocc_nano"
    backbone: Backbone = "efficientnet-lite0"
    backbone_weights: BackboneWeights = None
    input_width: Count = 352
    input_height: Count = 128
    depth_bins: Annotated[int, Field(ge=4, le=254)] = 96  # along each viewing ray
    depth_m: tuple[float, float] = (1.0, 60.0)
    depth_by_ground: bool = False  # hazards are also predicted relative to where each ray meets the ground
    # heads that pass hazards along image columns, from the foot of a thing upwards; 0: each pixel speaks for itself
    foot_heads: Annotated[int, Field(ge=0, le=16)] = 0
    feature_channels: Count = 32  # channels of a lifted image feature
    pillar_cells: Count = 2  # grid cells that share one lifted feature, along x and along y
    pillar_heights: Count = 8  # lifted features on top of each other
    neck_channels: Count = 64
    bev_channels: tuple[Count, Count, Count] = (48, 96, 112)  # at 1/2, 1/4 and 1/8 of the grid
    head_channels: Count = 48  # channels of a column of cells, from which its heights come
    # channels kept from earlier frames; 0: each frame is answered alone
    memory_channels: Annotated[int, Field(ge=0, le=4096)] = 0
    # age at which the state is replaced: with faster cameras it must not be replaced more often than in training
    memory_interval_s: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.4

    @model_validator(mode="after")
    def _check(self) -> EasyOccConfig:
        x, y, z = self.grid_shape
        if x % 8 or y % 8:
            raise ValueError(f"grid_shape x and y must be multiples of 8 cells, got {x} and {y}")
        if self.pillar_cells != 2:
            raise ValueError(f"pillar_cells must be 2, where the bird's-eye network works, got {self.pillar_cells}")
        if z % self.pillar_heights:
            raise ValueError(f"pillar_heights must divide the {z} cells along z, got {self.pillar_heights}")
        near, far = self.depth_m
        if not 0 < near < far <= 1000:
            raise ValueError(f"depth_m must be 0 < near < far <= 1000 m, got {self.depth_m}")
        px, py, _ = self.pillar_grid_shape
        if (numbers := (self.memory_channels + 1) * px * py) > MAX_MODEL_CELLS:
            raise ValueError(f"a memory of {numbers} numbers is too large, at most {MAX_MODEL_CELLS}: memory_channels")
        return self

    @property
    def remembers(self) -> bool:
        return self.memory_channels > 0

    def phases(self, steps: int, nano: NanoTraining) -> tuple[Phase, ...]:
        """A run has a phase of single images, one of whole samples and, with memory, one of sequences of samples."""
        if bool(nano.memory_steps) != self.remembers:
            raise InvalidInput(
                f"nano.memory_steps is {nano.memory_steps}, the model's memory_channels {self.memory_channels}: one "
                "needs the other"
            )
        if nano.memory_steps > steps:
            raise InvalidInput(f"nano.memory_steps are the last of all {steps} steps, got {nano.memory_steps}")
        first = Phase("images", nano.image_steps), Phase("samples", steps - nano.memory_steps)
        return (*first, Phase("sequences", nano.memory_steps)) if self.remembers else first

    @property
    def pillar_grid_shape(self) -> tuple[int, int, int]:
        x, y, _ = self.grid_shape
        return x // self.pillar_cells, y // self.pillar_cells, self.pillar_heights

    @property
    def feature_size(self) -> tuple[int, int]:
        """(width, height) of the feature map."""
        return self.input_width // STRIDE, self.input_height // STRIDE

    @property
    def depth_edges_m(self) -> np.ndarray:
        """Borders of the depth bins, float64 (depth_bins + 1,); widths grow slowly, with the defaults from 0.1 to 0.9
        m."""
        near, far = self.depth_m
        return near + (far - near) * np.linspace(0, 1, self.depth_bins + 1) ** 1.4


def parse_config(record: dict) -> EasyOccConfig:
    """Validate a config given as a plain dict.

    Raises:
        InvalidInput: one line that names the first wrong field.
    """
    return parse(EasyOccConfig, record)
