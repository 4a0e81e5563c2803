"""Defines once how an image is prepared for the network: resized and cropped. Normalising is part of the network.

Training cache, evaluation, export and node all call this; a different resize filter alone can cost ten points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from occ_core.camera import Camera
from occ_core.errors import InvalidInput

HORIZON = 29 / 128  # a 16:9 image then keeps its bottom rows


@dataclass(frozen=True)
class Preprocess:
    """Scales an image of any size to cover (width, height), then crops the rest: equally at both sides, more at the top
    than at the bottom.

    The middle row of the image, where a level camera has its horizon, comes to HORIZON of the height, whatever the
    image's shape: the top shows sky, the bottom the road before the wheels.
    """

    width: int
    height: int

    def plan(self, size: tuple[int, int]) -> tuple[tuple[int, int], int, int]:
        """The size after resizing, and left and top of the crop, for an image of (width, height)."""
        w, h = size
        scale = max(self.width / w, self.height / h)
        resized = max(self.width, round(w * scale)), max(self.height, round(h * scale))
        top = round(resized[1] / 2 - HORIZON * self.height)
        return resized, (resized[0] - self.width) // 2, min(max(top, 0), resized[1] - self.height)

    def image(self, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Make the network's input from an RGB image.

        Args:
            image: uint8 (h, w, 3).
            size: (width, height) of the whole image, where this is a smaller version of it.

        Returns:
            uint8 (height, width, 3), contiguous.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InvalidInput(f"an image must be uint8 (h, w, 3), got {image.dtype} {image.shape}")
        resized, left, top = self.plan(size or (image.shape[1], image.shape[0]))
        small = cv2.resize(image, resized, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small[top : top + self.height, left : left + self.width])

    def rig(self, images: Mapping[str, np.ndarray], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Make the network's inputs for a rig's cameras in the order of `names`.

        Returns:
            uint8 (N, height, width, 3), black where a camera has no image, and which have one, bool (N,).
        """
        present = np.array([name in images for name in names])
        stack = np.zeros((len(names), self.height, self.width, 3), dtype=np.uint8)
        for i in np.flatnonzero(present).tolist():
            stack[i] = self.image(images[names[i]])
        return stack, present

    def nearest(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Sample a map over an image of `size` (width, height) at the input's pixels, without mixing values.

        Args:
            values: (h, w), such as classes or depths; a map may be smaller than its image.

        Returns:
            (height, width) of the same type: each pixel's value is that of the map's pixel in which its centre lies.
        """
        (w, h), left, top = self.plan(size)
        column = (np.arange(left, left + self.width) + 0.5) * values.shape[1] / w
        row = (np.arange(top, top + self.height) + 0.5) * values.shape[0] / h
        return values[row.astype(int)[:, None], column.astype(int)]

    def camera(self, camera: Camera) -> Camera:
        """The calibration of the image that `image` returns."""
        resized, left, top = self.plan(camera.size)
        return camera.resized(resized).cropped(left, top, (self.width, self.height))
