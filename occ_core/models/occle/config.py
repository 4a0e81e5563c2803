"""Shape and losses of OccLE. It imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from occ_core.losses.weights import LabelLossWeights, Weight
from occ_core.models.config import CameraModelConfig, Count, LidarInput


class OccleLoss(BaseModel):
    """Weights of the losses; a weight of 0 leaves a term out, and what only it needs is not read. All weights are ours,
    because the paper's are not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Weight = 1.0  # of the answer, where cells are labelled
    label_terms: LabelLossWeights = LabelLossWeights(free_share=0.7)  # free_share: geometry_* by labels and LiDAR, too
    geometry_labels: Weight = 0.5  # of the geometry branch alone, where cells are labelled
    geometry_lidar: Weight = 0.5  # elsewhere: what LiDAR rays meet is occupied, what they pass is free
    geometry_consistency: Weight = 0.5  # in samples without label: what the averaged network says
    distil_2d: Weight = 0.2  # the class teacher's maps, on the images
    distil_3d: Weight = 0.1  # the same at LiDAR points and around them, of the semantic branch alone
    distil_answer: Weight = 0.6  # in samples without label: the answer's classes against pseudo-labels, where given
    projection: Weight = 0.2  # in samples without label: the answer accumulated along pixels' rays against the maps
    lidar_rays: Annotated[int, Field(gt=0)] = 4096  # LiDAR points of a step, in each sample
    pixel_rays: Annotated[int, Field(gt=0)] = 2048  # pixels of the projection, of all cameras of a sample
    consistency_cells: Annotated[int, Field(gt=0)] = 65_536  # in each sample


class OccleConfig(CameraModelConfig):
    """Settings of OccLE; `lidar: null` is a variant of cameras alone, which is ours."""

    takes_lidar: ClassVar[bool] = True

    kind: Literal["occle"] = "occle"
    name: str = "occle"
    lidar: LidarInput | None = LidarInput()
    feature_stride: Literal[4, 8, 16] = 8  # of the image features that are lifted
    feature_channels: Count = 32
    cells_per_feature: Literal[1, 2] = 2  # along each axis, that share one lifted feature
    volume_channels: Count = 32  # of each branch
    fusion: Literal["mamba", "conv", "none"] = "mamba"
    fusion_stages: Count = 4
    fusion_channels: Count = 64
    fusion_heads: Annotated[int, Field(ge=2, le=64)] = 8  # half of them walk forwards, half backwards
    fusion_state: Annotated[int, Field(ge=1, le=64)] = 8  # numbers that a channel remembers
    checkpoint: bool = False  # activations are computed twice instead of being kept: less memory, more time
    loss: OccleLoss = OccleLoss()

    @model_validator(mode="after")
    def _check_occle(self) -> OccleConfig:
        f = self.cells_per_feature
        of = f if self.fusion == "none" else 2 * f  # the fusion has half of the lattice's resolution
        if any(n % of for n in self.grid_shape):
            raise ValueError(f"grid_shape {self.grid_shape} must be multiples of {of} at cells_per_feature {f}")
        if self.fusion_heads % 2 or self.fusion_channels % self.fusion_heads:
            raise ValueError(
                f"fusion_heads must be even and divide the {self.fusion_channels} fusion_channels, got "
                f"{self.fusion_heads}"
            )
        loss, with_points = self.loss, self.lidar is not None
        labels = loss.labels > 0 and loss.label_terms.any
        if not (labels or loss.projection > 0 or (with_points and loss.distil_3d > 0)):
            ways = "labels, projection and, with LiDAR, distil_3d"
            raise ValueError(f"nothing teaches classes: one of the losses {ways} must be > 0")
        return self

    @property
    def block(self) -> tuple[int, int, int]:
        """Cells along x, y, z that share one lifted feature."""
        return (self.cells_per_feature,) * 3

    @property
    def lattice(self) -> tuple[int, int, int]:
        """Lifted features along x, y, z."""
        x, y, z = (n // self.cells_per_feature for n in self.grid_shape)
        return x, y, z

    @property
    def mean_teacher(self) -> bool:
        """Whether the losses ask the averaged network."""
        return self.loss.geometry_consistency > 0

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Targets` that the losses read."""
        loss = self.loss
        wanted = {
            "labels": loss.labels or loss.geometry_labels,
            "pseudo_labels": loss.distil_answer,
            "class_map": loss.distil_2d or loss.distil_answer or loss.projection or (loss.distil_3d and self.lidar),
            "lidar_origin_m": loss.geometry_lidar and self.lidar,
        }
        return frozenset(field for field, weight in wanted.items() if weight)
