"""Inputs of a camera network as tensors, for B samples of N cameras, and the targets that it learns from.

The networks that project cells into images take these two. EasyOcc nano, whose projection is a table, does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from occ_core.errors import InvalidInput


@dataclass(frozen=True, eq=False)
class RigImages:
    """Images of a rig of pinhole cameras, prepared by `occ_core.network_input.preprocess`, and the LiDAR's points if it
    has one.

    Attributes:
        images: uint8 [B, N, H, W, 3], RGB; black where a camera has no image.
        intrinsics: float32 [B, N, 3, 3], pixels of `images`; (0, 0) is the centre of the top-left pixel.
        ego_from_cam: float32 [B, N, 4, 4], optical camera frame to ego frame.
        present: bool [B, N]; a camera that is absent must not be looked at.
        lidar: float32 [B, P, 5]: x, y, z in metres in the ego frame at the sample's stamp, intensity 0..1, age_s (>= 0,
            how much older than the sample); rows of NaN pad, and a sample without a point has no others. None: the
            network takes none.
        sees: bool [B, N, H, W], False on pixels that show nothing of the world (see `Camera.blind`); None: all show it.
    """

    images: Tensor
    intrinsics: Tensor
    ego_from_cam: Tensor
    present: Tensor
    lidar: Tensor | None = None
    sees: Tensor | None = None

    def to(self, device: torch.device) -> RigImages:
        return each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> RigImages:
        """Copy the tensors to memory that a GPU can read by itself; torch's DataLoader calls this."""
        return each_tensor(self, Tensor.pin_memory)

    def batch(self) -> RigImages:
        """Make a batch of this one sample, whose tensors lack the first axis."""
        return each_tensor(self, lambda tensor: tensor[None])

    def first(self) -> RigImages:
        """Make a batch of the first sample alone."""
        return each_tensor(self, lambda tensor: tensor[:1])


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of the same samples; None where the run does not have them.

    Attributes:
        labels: uint8 [B, X, Y, Z], class ids of the grid's cells, UNLABELED where unobserved.
        class_weights: float32 [C], of the classes in losses on cells; 0 for classes that never occur.
        pseudo_labels: uint8 [B, X, Y, Z], of samples without label, what teachers say of their cells, UNLABELED
            where nothing.
        class_map: uint8 [B, N, H, W], the class teacher's answer at the size of the images; the free id is sky, 255
            unknown.
        pixel_weights: float32 [C], of the classes in losses on pixels.
        depth_m: float32 [B, N, H, W], the depth teacher's answer, along the optical axis; +inf = sky, NaN = unknown.
        neighbours: uint8 [B, N, 2, H, W, 3], the same camera's image one sweep earlier and one later.
        neighbour_from_cam: float32 [B, N, 2, 4, 4], from the camera to where it was at these; same intrinsics.
        neighbour_present: bool [B, N, 2].
        lidar_origin_m: float32 [B, 3], where the newest sweep of `RigImages.lidar` was taken, in the ego frame at the
            sample's stamp; NaN in a sample without a point.
    """

    labels: Tensor | None = None
    pseudo_labels: Tensor | None = None
    class_weights: Tensor | None = None
    class_map: Tensor | None = None
    pixel_weights: Tensor | None = None
    depth_m: Tensor | None = None
    neighbours: Tensor | None = None
    neighbour_from_cam: Tensor | None = None
    neighbour_present: Tensor | None = None
    lidar_origin_m: Tensor | None = None

    def need(self, field: str, term: str) -> Tensor:
        """Return a field that a loss term reads.

        Raises:
            InvalidInput: the run has nothing of the kind.
        """
        value = getattr(self, field)
        if value is None:
            raise InvalidInput(f"loss term '{term}' has a weight > 0, but the run has no {field}")
        return value

    def labels_of(self, grid_shape: tuple[int, int, int], term: str) -> Tensor:
        """Return the labels, for a loss term on cells.

        Raises:
            InvalidInput: the run has none, or of another grid than the network's.
        """
        labels = self.need("labels", term)
        if tuple(labels.shape[1:]) != grid_shape:
            raise InvalidInput(f"labels have {tuple(labels.shape[1:])} cells, the network's grid has {grid_shape}")
        return labels

    def to(self, device: torch.device) -> Targets:
        return each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Targets:
        """Copy the tensors to memory that a GPU can read by itself; torch's DataLoader calls this."""
        return each_tensor(self, Tensor.pin_memory)


def each_tensor(record: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the dataclass with `change` applied to each of its tensors."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return replace(record, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})
