"""Inputs and targets of EasyOcc nano: the counterparts of `RigImages` and `Targets`, with a table instead of a rig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from occ_core.models.easyocc.past import StampedPose
from occ_core.models.easyocc.settings import NanoTraining
from occ_core.network_input.rig_images import each_tensor


@dataclass(frozen=True, eq=False)
class TableImages:
    """Images of B frames, N in all, one after the other, with the table of their rigs; see `models.easyocc.table`.

    Attributes:
        images: uint8 [N, H, W, 3], RGB.
        rays: float32 [N, RAY_CHANNELS, h, w].
        voxel_index: int32 [B * X * Y * Z]; pillar_index: int32 [B * X/2 * Y/2 * heights]. None: images of any cameras
            of any frames, which are not brought into a grid.
        pose: when and where one frame was; None: nobody asks, or nobody knows.
    """

    images: Tensor
    rays: Tensor
    voxel_index: Tensor | None = None
    pillar_index: Tensor | None = None
    pose: StampedPose | None = None

    @property
    def table(self) -> tuple[Tensor, Tensor]:
        """`voxel_index` and `pillar_index`, where there are any."""
        assert self.voxel_index is not None and self.pillar_index is not None
        return self.voxel_index, self.pillar_index

    def to(self, device: torch.device) -> TableImages:
        return each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TableImages:
        """Copy the tensors to memory that a GPU can read by itself; torch's DataLoader calls this."""
        return each_tensor(self, Tensor.pin_memory)


class SampleSequence(NamedTuple):
    """A sequence of K frames of B robots, the newest last.

    Attributes:
        linked: bool [K - 1, B], whether there was something before; where not, the frame before stands in for nothing.
        then_from_now: float32 [K - 1, B, 2, 3], from each frame but the first to the one before.
    """

    frames: tuple[TableImages, ...]
    linked: Tensor
    then_from_now: Tensor

    def to(self, device: torch.device) -> SampleSequence:
        frames = tuple(frame.to(device) for frame in self.frames)
        return SampleSequence(frames, self.linked.to(device), self.then_from_now.to(device))


@dataclass(frozen=True, eq=False)
class TableTargets:
    """Targets of the same frames, or of the newest ones of sequences.

    Attributes:
        depth, pixel_class: uint8 [N, h, w], what each pixel's viewing ray meets; see `training.rays`.
        columns: int64 [K] into (B, X, Y), those that the losses on cells look at. column_labels: uint8 [K, Z], 255
            where unobserved.
        labels: uint8 [B, X, Y, Z]; of frames that are judged.
        class_weights, pixel_weights: float32 [classes], in losses on cells and on pixels.
        settings: of the run, how its losses are weighed and what stands still.
    """

    depth: Tensor
    pixel_class: Tensor
    columns: Tensor | None = None
    column_labels: Tensor | None = None
    labels: Tensor | None = None
    class_weights: Tensor | None = None
    pixel_weights: Tensor | None = None
    settings: NanoTraining = NanoTraining()

    def to(self, device: torch.device) -> TableTargets:
        return each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TableTargets:
        """As in `TableImages`."""
        return each_tensor(self, Tensor.pin_memory)
