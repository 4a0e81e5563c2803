"""Shape of a SelfOcc network and the weights of its losses. It imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from occ_core.losses.weights import LabelLossWeights, Weight
from occ_core.models.config import Backbone, CameraModelConfig, Count

Vertices = Annotated[int, Field(ge=3, le=1025)]  # a second difference needs three
STRIDES = (4, 8, 16, 32)


class SelfOccLoss(BaseModel):
    """Weights of the losses; a weight of 0 leaves a term out. The defaults are published for nuScenes occupancy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    photometric: Weight = 1.0
    rgb: Weight = 0.1
    eikonal: Weight = 0.1
    hessian: Weight = 0.01
    sparsity: Weight = 0.001
    semantic: Weight = 0.1
    smoothness: Weight = 0.0  # 0.01 in the published depth models, without rgb, Hessian and semantics
    labels: Weight = 0.0
    label_terms: LabelLossWeights = LabelLossWeights()
    observed_only: bool = True  # else cells without label count as free

    @property
    def renders(self) -> bool:
        return any((self.photometric, self.rgb, self.semantic, self.smoothness))


class SelfOccConfig(CameraModelConfig):
    """Settings of SelfOcc; the defaults are the published size for nuScenes occupancy with the TPV encoder."""

    kind: Literal["selfocc"] = "selfocc"
    name: str = "selfocc"
    input_width: Count = 800
    input_height: Count = 384
    backbone: Backbone = "resnet50"
    strides: tuple[int, ...] = STRIDES  # of the image features that are attended to
    channels: Count = 96
    encoder: Literal["bev", "tpv"] = "tpv"
    vertices: tuple[Vertices, Vertices, Vertices] = (257, 257, 25)  # of the distance field, and of the planes
    layers: Count = 4
    heads: Count = 6
    cross_points: tuple[Count, Count, Count] = (48, 48, 8)  # on the normal, of planes whose normal is x, y, z
    self_points: Count = 12
    head_channels: Count = 96
    semantics: bool = True  # else all that is occupied gets one class, see SelfOcc.answer
    rays: tuple[Count, Count] = (100, 48)  # (w, h) for each camera and step
    samples: Count = 256  # on each ray
    near_m: Annotated[float, Field(gt=0, le=10)] = 0.4
    mvs: bool = True  # photometric loss of all samples of a ray; else at the rendered depth
    checkpoint: bool = True  # compute hidden layers again in the backward pass instead of keeping them
    loss: SelfOccLoss = SelfOccLoss()

    @model_validator(mode="after")
    def _check_selfocc(self) -> SelfOccConfig:
        if not self.strides or not set(self.strides) <= set(STRIDES):
            raise ValueError(f"strides must be some of {STRIDES}, got {self.strides}")
        if self.input_width % (coarsest := max(self.strides)) or self.input_height % coarsest:
            raise ValueError(
                f"input must be a multiple of the largest stride, {coarsest} px, got "
                f"{self.input_width} x {self.input_height}"
            )
        if self.channels % self.heads:
            raise ValueError(f"heads must divide the {self.channels} channels, got {self.heads}")
        if min(self.rays) < 2:
            raise ValueError(f"rays must be at least 2 x 2, the windows of SSIM need it, got {self.rays}")
        if not self.semantics and (self.loss.semantic or self.loss.labels):
            raise ValueError("semantics is off, but loss.semantic or loss.labels is not 0")
        return self

    @property
    def needs(self) -> frozenset[str]:
        """The fields of `Targets` that the losses read."""
        wanted = {
            "labels": self.loss.labels,
            "class_map": self.loss.semantic,
            "neighbours": self.loss.photometric,
        }
        return frozenset(field for field, weight in wanted.items() if weight)

    @property
    def spacing_m(self) -> tuple[float, float, float]:
        """Distances between vertices along x, y and z."""
        sides = zip(self.grid.origin_m, self.grid.upper_m, self.vertices, strict=True)
        x, y, z = ((high - low) / (n - 1) for low, high, n in sides)
        return x, y, z
