"""Frames of any ROS 2 bag that has images, CameraInfo and TF (or odometry). Needs no ROS installation.

TF is read in a first pass, as it may come later in the bag than the images that need it; images are then streamed, and
only those of the sets that are still open are held.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.ego_mask import with_masks
from occ_core.errors import CorruptInput, InvalidInput, MissingInput, MissingTransform, OccError
from occ_core.frame import FULL_INTENSITY, Frame, LidarSweep
from occ_core.geometry import pose
from occ_core.limits import MAX_COEFFICIENTS
from occ_core.sources.bag_reader import BagReader
from occ_core.sources.bag_sets import Grouping
from occ_core.sources.clouds import lidar_of
from occ_core.sources.images import decode_compressed, decode_image
from occ_core.transforms import TransformTree

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO, CLOUD = "sensor_msgs/msg/CameraInfo", "sensor_msgs/msg/PointCloud2"
TF, ODOMETRY = "tf2_msgs/msg/TFMessage", "nav_msgs/msg/Odometry"
DISTORTION_MODELS = {"": "none", "fisheye": "equidistant", "equidistant": "equidistant"}


@dataclass(frozen=True)
class BagCamera:
    """Topics of one camera; `name` is their common namespace, such as `cam_front`."""

    name: str
    image_topic: str
    info_topic: str


class BagSource:
    """Frames of a bag in time order. An image joins the set of the key camera's image that it is nearest to.

    The key camera is the first of `cameras`, else the one whose name ends in `front`, else the first by name; its
    stamps and poses are the frames' references. A set whose transforms are not in the bag is skipped and counted in
    `skipped`; if that befalls all of them, reading raises.

    Args:
        path: folder of the bag, or its .mcap or .db3 file.
        cameras: names (namespaces such as `cam_front`) or image topics; None: every camera that has CameraInfo.
        base_frame: the ego frame.
        world_frame: None: `map`, else `odom`, else the frame of odometry messages; if there is none, the vehicle
            counts as standing still (attribute `world_frame` is None).
        lidar: PointCloud2 topic; None: the one that has `lidar` or `points` in its name, if it is only one.
        max_spread_s: an image farther from the key image is left out of its set.
        intensity_max: of a LiDAR return, as the driver counts: 255 for most, 1 where it gives shares.

    Raises:
        MissingInput, CorruptInput, InvalidInput: naming the topic and what is missing.
    """

    def __init__(
        self,
        path: Path | str,
        cameras: list[str] | None = None,
        base_frame: str = "base_link",
        world_frame: str | None = None,
        lidar: str | None = None,
        max_spread_s: float = 0.1,
        intensity_max: float = FULL_INTENSITY,
    ) -> None:
        self.reader = BagReader(path)
        self.path = self.reader.path
        self.cameras = find_cameras(self.reader, cameras)
        self.key = self.cameras[0] if cameras else _front(self.cameras)
        self.lidar_topic = find_lidar(self.reader, lidar)
        self.base_frame = base_frame.lstrip("/")
        self.tree = _read_tree(self.reader, self.base_frame)
        self.world_frame = _world(self.tree, self.base_frame, world_frame, self.path)
        self.infos = _read_infos(self.reader, self.cameras)
        self.skipped: Counter[str] = Counter()
        self._spread_ns = int(max_spread_s * 1e9)
        self._intensity_max = intensity_max
        self._rig: Rig | None = None

    def __iter__(self) -> Iterator[Frame]:
        self.skipped.clear()
        answered, reason = 0, None
        for images, cloud in self.sets():
            try:
                frame = self.frame(images, cloud)
            except MissingTransform as error:
                reason = error
                self.skipped["no transform at its stamp"] += 1
                continue
            answered += 1
            yield frame
        if not answered and reason is not None:
            raise MissingTransform(f"{self.path}: none of {self.skipped.total()} image sets can be placed: {reason}")

    def stamps(self) -> Iterator[dict[str, int]]:
        """Of each set: camera name -> stamp_ns. Decodes no pixel."""
        return ({name: stamp_of(message) for name, message in images.items()} for images, _ in self.sets())

    def sets(
        self, kept: Callable[[int, Any], Any] = lambda log_ns, message: message
    ) -> Iterator[tuple[dict[str, Any], Any]]:
        """(camera name -> image message, cloud or None) of each set, or of each message what `kept` makes of it and of
        its log time."""
        names = {camera.image_topic: camera.name for camera in self.cameras}
        topics = list(names) + ([self.lidar_topic] if self.lidar_topic else [])
        grouping = Grouping([camera.name for camera in self.cameras], self.key.name, self._spread_ns)
        for topic, log_ns, message in self.reader.messages(topics):
            if topic in names and not stamp_of(message):
                raise InvalidInput(f"{self.path}: messages of '{topic}' have no stamp (0 s)")
            yield from grouping.add(names.get(topic, ""), stamp_of(message), kept(log_ns, message))
        yield from grouping.rest()

    def frame(self, images: dict[str, Any], cloud: Any) -> Frame:
        """The frame of one of `sets`."""
        stamps = {name: stamp_of(message) for name, message in images.items()}
        rig, poses = self.place(stamps)
        decoded = {camera.name: self._decode(camera, images) for camera in self.cameras if camera.name in images}
        return Frame(
            stamp_ns=stamps[self.key.name],
            world_from_ego=poses[self.key.name],
            rig=rig,
            images=decoded,
            camera_stamp_ns=stamps,
            camera_world_from_ego=poses,
            lidar=None if cloud is None else self._lidar(cloud),
            scene=self.path.stem,
            is_placed=self.world_frame is not None,
        )

    def place(self, stamps: dict[str, int]) -> tuple[Rig, dict[str, np.ndarray]]:
        """The rig, and world_from_ego (4, 4) at the stamp of each image.

        Raises:
            MissingTransform: TF does not cover them.
        """
        key_stamp = stamps[self.key.name]
        rig = self._rig_at({camera.name: stamps.get(camera.name, key_stamp) for camera in self.cameras})
        return rig, {name: self._world_from_ego(stamp) for name, stamp in stamps.items()}

    def _decode(self, camera: BagCamera, images: dict[str, Any]) -> np.ndarray:
        message = images[camera.name]
        try:
            if message.__msgtype__ == COMPRESSED:
                rgb = decode_compressed(message.data)
            else:
                rgb = decode_image(message.encoding, message.width, message.height, message.step, message.data)
        except OccError as error:
            raise CorruptInput(f"{self.path}: '{camera.image_topic}' at {stamp_of(message)} ns: {error}") from error
        info = self.infos[camera.name]
        if rgb.shape[:2] != (info.height, info.width):
            raise InvalidInput(
                f"{self.path}: image on '{camera.image_topic}' is {rgb.shape[1]} x {rgb.shape[0]} px, "
                f"'{camera.info_topic}' says {info.width} x {info.height}"
            )
        return rgb

    def _rig_at(self, stamps: dict[str, int]) -> Rig:
        """The rig, made anew only when a camera's place on the vehicle changed."""
        cameras = []
        for camera in self.cameras:
            info = self.infos[camera.name]
            ego_from_cam = self.tree.lookup(self.base_frame, info.header.frame_id, stamps[camera.name])
            if self._rig is not None and np.allclose(self._rig[camera.name].ego_from_cam, ego_from_cam, atol=1e-9):
                cameras.append(self._rig[camera.name])
            else:
                rectified = _is_rectified(camera.image_topic)
                cameras.append(camera_from_info(camera.name, info, ego_from_cam, rectified, self._where(camera)))
        if self._rig is None or any(new is not old for new, old in zip(cameras, self._rig, strict=True)):
            self._rig = with_masks(Rig(tuple(cameras)), self.path, self.path.stem)
        return self._rig

    def _where(self, camera: BagCamera) -> str:
        return f"{self.path}: '{camera.info_topic}'"

    def _world_from_ego(self, stamp_ns: int) -> np.ndarray:
        return np.eye(4) if self.world_frame is None else self.tree.lookup(self.world_frame, self.base_frame, stamp_ns)

    def _lidar(self, cloud: Any) -> LidarSweep | None:
        try:
            return self.sweep(cloud)
        except MissingTransform:
            self.skipped[f"LiDAR sweep on '{self.lidar_topic}': no transform"] += 1
            return None

    def sweep(self, cloud: Any) -> LidarSweep:
        """The sweep of a PointCloud2 message, in the world by its own stamp.

        Raises:
            MissingTransform: TF does not place the LiDAR at its stamp. CorruptInput: the message is no cloud.
        """
        stamp_ns = stamp_of(cloud)
        where = f"{self.path}: '{self.lidar_topic}' at {stamp_ns} ns"
        try:
            ego_from_lidar = self.tree.lookup(self.base_frame, cloud.header.frame_id, stamp_ns)
            world_from_ego = self._world_from_ego(stamp_ns)
            points, intensity, ring = lidar_of(cloud, self._intensity_max)
        except MissingTransform as error:
            raise MissingTransform(f"{where}: no pose for the LiDAR sweep: {error}") from error
        except InvalidInput as error:
            raise CorruptInput(f"{where}: {error}") from error
        return LidarSweep(points, intensity, ring, ego_from_lidar, stamp_ns, world_from_ego)


def camera_from_info(
    name: str, info: Any, ego_from_cam: np.ndarray, rectified: bool = False, where: str = "camera_info"
) -> Camera:
    """Calibration from a sensor_msgs/CameraInfo (any object with its fields, in ROS 2 lower case).

    Args:
        name: of the camera.
        info: the message.
        ego_from_cam: (4, 4).
        rectified: the images are rectified: P holds instead of K and D.
        where: for the error message.

    Raises:
        InvalidInput: naming the topic and the value.
    """
    if len(info.d) > MAX_COEFFICIENTS:
        raise InvalidInput(f"{where}: at most {MAX_COEFFICIENTS} distortion coefficients, got {len(info.d)}")
    distortion = [float(v) for v in info.d]
    model = DISTORTION_MODELS.get(info.distortion_model, info.distortion_model)
    intrinsics = np.array(info.k, dtype=np.float64).reshape(3, 3)
    if rectified:
        intrinsics = np.array(info.p, dtype=np.float64).reshape(3, 4)[:, :3]
    if rectified or not any(distortion):
        model, distortion = "none", []
    try:
        camera = Camera(name, intrinsics, (int(info.width), int(info.height)), ego_from_cam, model, tuple(distortion))
        _require_rays(camera)
        return camera
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from None


def _require_rays(camera: Camera) -> None:
    """Numbers that are each within bounds can still be no lens: it has to have a viewing ray in every corner."""
    w, h = camera.size
    corners = np.array([(u, v) for u in (0, (w - 1) / 2, w - 1) for v in (0, (h - 1) / 2, h - 1)], dtype=np.float64)
    if not np.isfinite(camera.rays(corners)).all():
        raise InvalidInput(f"camera '{camera.name}': no viewing ray at a corner of its {w} x {h} px: D does not fit K")


def find_cameras(reader: BagReader, wanted: list[str] | None) -> list[BagCamera]:
    """Cameras of a bag: image topics with the CameraInfo topic beside them.

    Raises:
        MissingInput: none, or a wanted one is not there.
    """
    infos = set(reader.of_type(CAMERA_INFO))
    topics = reader.of_type(IMAGE, COMPRESSED)
    if not topics:
        raise MissingInput(f"{reader.path}: no image topic ({IMAGE} or {COMPRESSED}) with messages")
    all_cameras = [_camera_of_topic(topic) for topic in sorted(topics, key=_preference)]
    with_info = [camera for camera in all_cameras if camera.info_topic in infos]
    if wanted is None:
        if not with_info:
            raise MissingInput(
                f"{reader.path}: no CameraInfo for any of the image topics {', '.join(topics)} "
                f"(expected beside them, such as '{all_cameras[0].info_topic}')"
            )
        first = {camera.name: camera for camera in reversed(with_info)}  # the preferred topic of each namespace
        return [first[name] for name in sorted(first)]
    return [_wanted_camera(reader, name, all_cameras, infos) for name in wanted]


def _wanted_camera(reader: BagReader, name: str, cameras: list[BagCamera], infos: set[str]) -> BagCamera:
    for camera in cameras:
        if name in (camera.image_topic, camera.name, f"/{camera.name}"):
            if camera.info_topic not in infos:
                raise MissingInput(f"{reader.path}: '{camera.image_topic}' has no CameraInfo on '{camera.info_topic}'")
            return camera
    known = ", ".join(sorted({camera.name for camera in cameras}))
    raise MissingInput(f"{reader.path}: no images of camera '{name}', only of: {known}")


def _camera_of_topic(topic: str) -> BagCamera:
    """By image_transport's habit: <namespace>/<image>[/compressed], and <namespace>/camera_info."""
    namespace = topic.removesuffix("/compressed").rpartition("/")[0]
    return BagCamera(namespace.strip("/") or topic.strip("/"), topic, f"{namespace}/camera_info")


def _preference(topic: str) -> tuple[bool, bool, str]:
    """Of several image topics of one camera: unrectified first, then compressed (less to read)."""
    return _is_rectified(topic), not topic.endswith("/compressed"), topic


def _is_rectified(topic: str) -> bool:
    """By image_proc's habit: image_rect, image_rect_color, ...."""
    return "rect" in topic.removesuffix("/compressed").rpartition("/")[2]


def _front(cameras: list[BagCamera]) -> BagCamera:
    return next((camera for camera in cameras if camera.name.endswith("front")), cameras[0])


def find_lidar(reader: BagReader, wanted: str | None = None) -> str | None:
    """The PointCloud2 topic `wanted`, or else the one that has `lidar` or `points` in its name, if it is only one.

    Raises:
        MissingInput: the bag does not have the wanted one.
    """
    clouds = reader.of_type(CLOUD)
    if wanted is not None:
        if wanted not in clouds:
            raise MissingInput(f"{reader.path}: no point clouds on '{wanted}', only on: {', '.join(clouds) or 'none'}")
        return wanted
    likely = [topic for topic in clouds if "lidar" in topic.lower() or "points" in topic.lower()]
    return likely[0] if len(likely) == 1 else None


def _read_infos(reader: BagReader, cameras: list[BagCamera]) -> dict[str, Any]:
    """The first CameraInfo of each camera."""
    infos: dict[str, Any] = {}
    topics = {camera.info_topic for camera in cameras}
    for topic, _, message in reader.messages(sorted(topics)):
        if topic not in infos and not message.header.frame_id:
            raise InvalidInput(f"{reader.path}: '{topic}' has an empty frame_id, so the camera cannot be placed")
        infos.setdefault(topic, message)
        if len(infos) == len(topics):
            break
    lost = sorted(topics - infos.keys())
    if lost:
        raise CorruptInput(f"{reader.path}: damaged bag: no message of {', '.join(lost)} can be found")
    return {camera.name: infos[camera.info_topic] for camera in cameras}


def _read_tree(reader: BagReader, base_frame: str) -> TransformTree:
    """All transforms of the bag, with odometry where TF does not say how the vehicle moves."""
    topics = reader.of_type(TF)
    if not topics:
        raise MissingInput(f"{reader.path}: no TF (/tf, /tf_static), so the cameras' places on the vehicle are unknown")
    tree = TransformTree(buffer_s=math.inf)
    for topic, _, message in reader.messages(topics):
        for link in message.transforms:
            t, q = link.transform.translation, link.transform.rotation
            _set(tree, reader, topic, link.header, link.child_frame_id, t, q, topic.endswith("tf_static"))
    if tree.ancestors(base_frame)[-1] not in ("map", "odom"):
        for topic, _, message in reader.messages(reader.of_type(ODOMETRY)[:1]):
            child, place = message.child_frame_id.lstrip("/"), message.pose.pose
            if tree.parent(child) in (None, message.header.frame_id.lstrip("/")):
                _set(tree, reader, topic, message.header, child, place.position, place.orientation, False)
    return tree


def _set(
    tree: TransformTree, reader: BagReader, topic: str, header: Any, child: str, t: Any, q: Any, static: bool
) -> None:
    try:
        matrix = pose((t.x, t.y, t.z), (q.w, q.x, q.y, q.z))
        tree.set(header.frame_id, child, _time(header), matrix, static)
    except InvalidInput as error:
        raise CorruptInput(f"{reader.path}: '{topic}', {header.frame_id} -> {child}: {error}") from error


def _world(tree: TransformTree, base_frame: str, wanted: str | None, path: Path) -> str | None:
    if base_frame not in tree.frames:
        raise MissingInput(f"{path}: no transform names '{base_frame}', only: {', '.join(sorted(tree.frames)[:20])}")
    above = tree.ancestors(base_frame)
    if wanted is not None:
        if wanted.lstrip("/") not in above:
            raise MissingInput(f"{path}: '{base_frame}' is not below '{wanted}', only: {' <- '.join(above)}")
        return wanted.lstrip("/")
    known = next((frame for frame in ("map", "odom") if frame in above), None)
    return known or (above[-1] if _moves(tree, above) else None)


def _moves(tree: TransformTree, chain: list[str]) -> bool:
    """A link on the way up is not static, so its top is a world of some name."""
    return any(tree.is_moving(frame) for frame in chain)


def stamp_of(message: Any) -> int:
    """Time of a message's header in nanoseconds."""
    return _time(message.header)


def _time(header: Any) -> int:
    """Stamp of a header in nanoseconds."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)
