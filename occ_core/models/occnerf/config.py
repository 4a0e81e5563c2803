"""Shape of an OccNeRF network and the weights of its losses. It imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from occ_core.losses.weights import LabelLossWeights, Weight
from occ_core.models.config import CameraModelConfig, Count


class OccNerfLoss(BaseModel):
    """Weights of the losses; a weight of 0 leaves a term out. The defaults are the published ones, without labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    photometric: Weight = 1.0
    smoothness: Weight = 0.001
    entropy: Weight = 0.01
    distortion: Weight = 0.01
    semantic: Weight = 0.05
    labels: Weight = 0.0
    label_terms: LabelLossWeights = LabelLossWeights()
    observed_only: bool = True  # False: cells that the labels do not know count as free (for comparison)

    @model_validator(mode="after")
    def _check(self) -> OccNerfLoss:
        if not (self.photometric or self.semantic or (self.labels and self.label_terms.any)):
            raise ValueError("nothing teaches the cells: photometric, semantic or labels must be > 0")
        return self

    @property
    def renders(self) -> bool:
        return any((self.photometric, self.smoothness, self.entropy, self.distortion, self.semantic))


class OccNerfConfig(CameraModelConfig):
    """All settings that decide the weights' shapes, and the losses; the defaults are the published size."""

    kind: Literal["occnerf"] = "occnerf"
    name: str = "occnerf"
    feature_stride: Literal[4, 8, 16] = 4  # of the image features that are lifted
    feature_channels: Count = 64
    contraction_ratio: Annotated[float, Field(gt=0.1, le=1)] = 2 / 3  # share of the volume that the grid has; 1: all
    cells_per_feature: Literal[1, 2] = 1  # along each axis, that share one cell of the volume
    volume_channels: Count = 32
    hourglass_stacks: Count = 3
    head_convolutions: Count = 4  # before the one that gives the logits
    render_width: Count = 320  # rays for each camera, spread evenly over its image
    render_height: Count = 180
    samples: Count = 424  # on each ray
    samples_per_class: Count = 4  # that share one look-up of the classes
    depth_m: tuple[float, float] = (0.5, 200.0)  # where rays begin and end at the latest
    rays_per_chunk: Annotated[int, Field(gt=0)] = 1 << 14  # rendered at a time
    checkpoint: bool = True  # activations are computed twice instead of being kept: less memory, more time
    loss: OccNerfLoss = OccNerfLoss()

    @model_validator(mode="after")
    def _check_occnerf(self) -> OccNerfConfig:
        _ = self.volume_shape
        near, far = self.depth_m
        if not 0 < near < far <= 1000:
            raise ValueError(f"depth_m must be 0 < near < far <= 1000 m, got {self.depth_m}")
        if self.samples % self.samples_per_class:
            raise ValueError(f"samples_per_class must divide the {self.samples} samples, got {self.samples_per_class}")
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, got {self.samples}")
        return self

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """Cells of the volume along x, y, z: `cells_per_feature` of the grid's cells make one, and the contraction adds
        cells around them."""
        f, ratio = self.cells_per_feature, self.contraction_ratio
        shape = []
        for cells in self.grid_shape:
            rim = cells / f * (1 / ratio - 1) / 2  # on each side
            if cells % f or abs(rim - round(rim)) > 1e-3:
                raise ValueError(
                    f"grid_shape {self.grid_shape} at {f} cells per feature and contraction_ratio {ratio:.4g} is not a "
                    "whole number of cells inside and on each side"
                )
            shape.append(cells // f + 2 * round(rim))
        x, y, z = shape
        return x, y, z

    @property
    def needs(self) -> frozenset[str]:
        """The fields of `Targets` that the losses read."""
        wanted = {
            "labels": self.loss.labels,
            "class_map": self.loss.semantic,
            "neighbours": self.loss.photometric,
        }
        return frozenset(field for field, weight in wanted.items() if weight)
