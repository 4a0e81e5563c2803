"""Shape and losses of EasyOcc in the sizes `paper`, `base` and `small`. It imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from occ_core.losses.weights import LabelLossWeights, Weight
from occ_core.models.config import CameraModelConfig, Count


class EasyOccLoss(BaseModel):
    """Weights of the losses; a weight of 0 leaves a term out, and its targets are not needed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Weight = 1.0
    label_terms: LabelLossWeights = LabelLossWeights()
    observed_only: bool = True  # False: cells that the labels do not know count as free (for comparison)
    observed: Weight = 0.2  # seen by a camera against hidden, of cells in view
    query: Weight = 0.0  # on points along viewing rays, from the teachers' maps; see losses.query
    query_rays: Annotated[int, Field(gt=0)] = 16_384  # of all cameras of one sample
    query_buffer_m: Annotated[float, Field(gt=0, le=10)] = 0.4  # behind a hit, where its class is asked for

    @model_validator(mode="after")
    def _check(self) -> EasyOccLoss:
        if self.query == 0 and (self.labels == 0 or not self.label_terms.any):
            raise ValueError(
                "nothing teaches the classes: one of labels (with a term of label_terms) and query must be > 0"
            )
        return self


class EasyOccVolumeConfig(CameraModelConfig):
    """All settings that decide the weights' shapes, and the losses; the defaults are the size `paper`."""

    kind: Literal["easyocc"] = "easyocc"
    name: str = "easyocc_paper"
    feature_stride: Literal[4, 8, 16] = 4  # of the image features that are lifted
    feature_channels: Count = 64
    head: Literal["hourglass", "birds-eye"] = "hourglass"
    cells_per_feature: Literal[1, 2] = 1  # along an axis (birds-eye: along x and y) that share one lifted feature
    hourglass_channels: Count = 32
    hourglass_stacks: Count = 3
    pillar_heights: Count = 4  # birds-eye: lifted features on top of each other
    bev_channels: tuple[Count, Count, Count] = (128, 256, 384)  # birds-eye: at 1, 1/2 and 1/4 of the lifted resolution
    observed_output: bool = True  # does a camera see the cell, or is it hidden? Without it, all in view counts as seen
    checkpoint: bool = False  # activations are computed twice instead of being kept: less memory, more time
    loss: EasyOccLoss = EasyOccLoss()

    @model_validator(mode="after")
    def _check(self) -> EasyOccVolumeConfig:
        if self.head == "birds-eye" and self.grid_shape[2] % self.pillar_heights:
            raise ValueError(
                f"pillar_heights must divide the {self.grid_shape[2]} cells along z, got {self.pillar_heights}"
            )
        if any(n % cells for n, cells in zip(self.grid_shape, self.block, strict=True)):
            raise ValueError(f"cells_per_feature {self.cells_per_feature} must divide grid_shape {self.grid_shape}")
        if self.observed_output and self.loss.observed == 0:
            raise ValueError("observed_output needs loss.observed > 0, or nothing teaches it")
        return self

    @property
    def block(self) -> tuple[int, int, int]:
        """Cells along x, y, z that share one lifted feature."""
        f = self.cells_per_feature
        return (f, f, f) if self.head == "hourglass" else (f, f, self.grid_shape[2] // self.pillar_heights)

    @property
    def lifted_shape(self) -> tuple[int, int, int]:
        """Lifted features along x, y, z."""
        x, y, z = (n // cells for n, cells in zip(self.grid_shape, self.block, strict=True))
        return x, y, z

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Targets` that the losses read."""
        fields: set[str] = set()
        if self.loss.labels > 0 or self.observed_output:
            fields.add("labels")
        if self.loss.query > 0:
            fields |= {"depth_m", "class_map"}
        return frozenset(fields)
