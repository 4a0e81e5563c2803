"""Frames for Foxglove: a WebSocket server with cameras, transforms and voxels, for the browser or the desktop app."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from occ_core.camera import Camera
from occ_core.errors import CannotWrite, need
from occ_core.frame import Frame
from occ_core.geometry import quaternion_from_rotation
from occ_core.occupancy import Occupancy
from occ_core.show.predicted_frames import PredictedFrame, PredictedFrames
from occ_core.show.recording import JPEG_QUALITY

WORLD, BASE = "map", "base_link"
PREDICTED, TRUE = "/occupancy/predicted", "/occupancy/true"
LONGEST_PAUSE_S = 2.0  # between two frames, whatever the gap between their stamps (another scene)
MODELS = {"none": "", "plumb_bob": "plumb_bob", "rational_polynomial": "rational_polynomial"}
MODELS["equidistant"] = "kannala_brandt"


def image_topic(camera: str) -> str:
    """As the node and `occ bag make` have it, so that one layout serves all."""
    return f"/{camera.lower()}/image_raw/compressed"


def info_topic(camera: str) -> str:
    return f"/{camera.lower()}/camera_info"


class FoxgloveServer:
    """Serves on `host:port` while its `with` block runs; topics as docs/view.md lists them.

    Args:
        name: what viewers call it.
        cameras: names of those that will be shown: every topic is there before the first viewer is, as the SDK may
            refuse a viewer who subscribes right after a topic was added.

    Raises:
        MissingPackage: foxglove-sdk is not installed.
        CannotWrite: the port is taken or not allowed.
    """

    def __init__(self, name: str, cameras: Sequence[str], host: str, port: int) -> None:
        self._foxglove = need("foxglove", "viz")
        self._messages = need("foxglove.messages", "viz")
        self._channels = need("foxglove.channels", "viz")
        self._context = self._foxglove.Context()  # of its own, so that two servers do not mix
        self._topics: dict[str, Any] = {}
        self._offer("/tf", "FrameTransforms")
        for camera in cameras:
            self._offer(image_topic(camera), "CompressedImage")
            self._offer(info_topic(camera), "CameraCalibration")
        for topic in (PREDICTED, TRUE):
            self._offer(topic, "VoxelGrid")
        try:
            self._server = self._foxglove.start_server(name=name, host=host, port=port, context=self._context)
        except Exception as error:  # the SDK raises RuntimeError with the system's words
            raise CannotWrite(f"cannot serve on {host}:{port}: {error}") from error
        self.host, self.port = host, self._server.port

    def __enter__(self) -> FoxgloveServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        """For `Open connection` in Foxglove."""
        return f"ws://{self.host}:{self.port}"

    def start_over(self) -> None:
        """Tell the viewers that time jumps back."""
        self._server.clear_session()

    def publish(self, predicted_frame: PredictedFrame) -> None:
        """Send everything of one frame to who looks."""
        frame, stamp_ns = predicted_frame.frame, predicted_frame.frame.stamp_ns
        self._topics["/tf"].log(self._transforms(frame), log_time=stamp_ns)
        for name, image in frame.images.items():
            camera = frame.rig[name]
            self._offer(image_topic(name), "CompressedImage")  # a camera that the first frame did not have
            self._offer(info_topic(name), "CameraCalibration")
            self._topics[info_topic(name)].log(self._calibration(camera, stamp_ns), log_time=stamp_ns)
            self._topics[image_topic(name)].log(self._image(name, image, stamp_ns), log_time=stamp_ns)
        for topic, occupancy in ((PREDICTED, predicted_frame.predicted), (TRUE, predicted_frame.truth)):
            if occupancy is not None:
                self._topics[topic].log(self._voxels(occupancy, stamp_ns), log_time=stamp_ns)

    def _offer(self, topic: str, kind: str) -> None:
        if topic not in self._topics:
            self._topics[topic] = getattr(self._channels, f"{kind}Channel")(topic, context=self._context)

    def _time(self, stamp_ns: int) -> Any:
        return self._messages.Timestamp(stamp_ns // 10**9, stamp_ns % 10**9)

    def _transforms(self, frame: Frame) -> Any:
        links = [(WORLD, BASE, frame.world_from_ego)]
        links += [(BASE, camera.name, camera.ego_from_cam) for camera in frame.rig_at_stamps]
        transforms = []
        for parent, child, matrix in links:
            w, x, y, z = quaternion_from_rotation(matrix[:3, :3]).tolist()
            transforms.append(
                self._messages.FrameTransform(
                    timestamp=self._time(frame.stamp_ns),
                    parent_frame_id=parent,
                    child_frame_id=child,
                    translation=self._messages.Vector3(**dict(zip("xyz", matrix[:3, 3].tolist(), strict=True))),
                    rotation=self._messages.Quaternion(x=x, y=y, z=z, w=w),
                )
            )
        return self._messages.FrameTransforms(transforms=transforms)

    def _calibration(self, camera: Camera, stamp_ns: int) -> Any:
        k = camera.intrinsics
        projection = np.hstack([k, np.zeros((3, 1))])
        return self._messages.CameraCalibration(
            timestamp=self._time(stamp_ns),
            frame_id=camera.name,
            width=camera.size[0],
            height=camera.size[1],
            distortion_model=MODELS.get(camera.distortion_model, ""),
            D=list(camera.distortion),
            K=k.ravel().tolist(),
            R=np.eye(3).ravel().tolist(),
            P=projection.ravel().tolist(),
        )

    def _image(self, name: str, image: np.ndarray, stamp_ns: int) -> Any:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return self._messages.CompressedImage(
            timestamp=self._time(stamp_ns), frame_id=name, data=jpeg.tobytes(), format="jpeg"
        )

    def _voxels(self, occupancy: Occupancy, stamp_ns: int) -> Any:
        m, (x, y, _), edge_m = self._messages, occupancy.grid.shape, occupancy.grid.voxel_size_m
        cell = 5  # bytes
        fields = [
            m.PackedElementField(name=name, offset=offset, type=m.PackedElementFieldNumericType.Uint8)
            for offset, name in enumerate(("red", "green", "blue", "alpha", "label"))
        ]
        origin = m.Vector3(**dict(zip("xyz", occupancy.grid.origin_m, strict=True)))
        return m.VoxelGrid(
            timestamp=self._time(stamp_ns),
            frame_id=BASE,
            pose=m.Pose(position=origin, orientation=m.Quaternion(x=0.0, y=0.0, z=0.0, w=1.0)),
            column_count=x,
            row_count=y,
            cell_size=m.Vector3(x=edge_m, y=edge_m, z=edge_m),
            cell_stride=cell,
            row_stride=cell * x,
            slice_stride=cell * x * y,
            fields=fields,
            data=voxel_bytes(occupancy),
        )


def voxel_bytes(occupancy: Occupancy) -> bytes:
    """Red, green, blue, alpha, label of each cell, x running first, then y, then z; cells not occupied are clear."""
    cells = np.zeros((*occupancy.grid.shape, 5), dtype=np.uint8)
    occupied = occupancy.occupied
    labels = occupancy.labels[occupied]
    cells[occupied, :3], cells[occupied, 3], cells[occupied, 4] = occupancy.taxonomy.palette[labels], 255, labels
    cells[~occupied, 4] = occupancy.taxonomy.free_id
    return np.ascontiguousarray(cells.transpose(2, 1, 0, 3)).tobytes()


def play(server: FoxgloveServer, frames: PredictedFrames, rate: float, loop: bool) -> None:
    """Publish all frames at their own pace times `rate`; for ever with `loop`."""
    while True:
        last_ns: int | None = None
        due_s = time.monotonic()
        for predicted_frame in (frames[index] for index in range(len(frames))):
            gap_s = 0.0 if last_ns is None else (predicted_frame.frame.stamp_ns - last_ns) / 1e9 / rate
            due_s = max(due_s + min(max(gap_s, 0.0), LONGEST_PAUSE_S), time.monotonic())
            time.sleep(max(0.0, due_s - time.monotonic()))
            server.publish(predicted_frame)
            last_ns = predicted_frame.frame.stamp_ns
        if not loop:
            return
        time.sleep(min(1 / rate, LONGEST_PAUSE_S))
        server.start_over()
