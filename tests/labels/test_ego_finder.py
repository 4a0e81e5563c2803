"""The finder of ego masks on a drawn world with exact masks: a textured plain, a sky with clouds, a body."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from occ_core.camera import Camera, Rig
from occ_core.frame import Frame
from occ_core.geometry import pose
from occ_core.labels.ego_finder import LEAST, PICTURE, MaskFinder, own_pixels, write_found

SIZE = (320, 180)
K = np.array([[160.0, 0, 159.5], [0, 160, 89.5], [0, 0, 1]])
TEXTURE_PX_M = 16
WIDE_M = 120


@pytest.fixture(scope="module")
def ground() -> np.ndarray:
    """RGB of the plain, with two solid lines along x beside the robot's straight way."""
    rng = np.random.default_rng(3)
    side = WIDE_M * TEXTURE_PX_M
    coarse = cv2.resize(rng.integers(50, 200, (WIDE_M // 2, WIDE_M // 2), dtype=np.uint8), (side, side))
    fine = cv2.GaussianBlur(rng.normal(0, 30, (side, side)).astype(np.float32), (0, 0), 2) * 3
    out = np.clip(coarse + fine, 0, 255).astype(np.uint8)
    for y_m in (-1.8, 1.8):
        row = round((y_m + WIDE_M / 2) * TEXTURE_PX_M)
        out[row - 2 : row + 2] = 240
    return np.repeat(out[..., None], 3, axis=2)


def body() -> np.ndarray:
    """bool (h, w): a bonnet and, at the left border, a bracket."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    cv2.fillPoly(mask, [np.array([[40, 180], [90, 150], [230, 150], [280, 180]])], 1)
    mask[60:120, :14] = 1
    return mask > 0


def looking(world_from_ego: np.ndarray, ground: np.ndarray, own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """RGB of a camera 1.5 m above the plain that looks ahead, with noise and an exposure of its own."""
    w, h = SIZE
    u, v = np.meshgrid(np.arange(w), np.arange(h))
    rays = np.stack([np.ones_like(u, float), -(u - K[0, 2]) / K[0, 0], -(v - K[1, 2]) / K[1, 1]], axis=-1)
    rays = rays @ world_from_ego[:3, :3].T
    with np.errstate(divide="ignore"):
        far = np.where(rays[..., 2] < -0.02, -1.5 / rays[..., 2], np.nan)
    at = (world_from_ego[:2, 3] + rays[..., :2] * far[..., None] + WIDE_M / 2) * TEXTURE_PX_M
    seen = cv2.remap(ground, np.nan_to_num(at, nan=-1.0).astype(np.float32), None, cv2.INTER_LINEAR).astype(float)
    azimuth = np.arctan2(rays[..., 1], rays[..., 0])
    clouds = 215 + 25 * np.sign(np.sin(7 * azimuth) + np.sin(23 * rays[..., 2]) - 0.7)
    out = np.where(np.isnan(far)[..., None], clouds[..., None], seen)
    out[own] = (70, 80, 110)
    out *= rng.uniform(0.9, 1.1)
    return np.clip(out + rng.normal(0, 3, out.shape), 0, 255).astype(np.uint8)


def drive(ground, own, places, placed=True, factor=2) -> MaskFinder:
    """Images `factor` times as large as drawn."""
    rng, finder = np.random.default_rng(0), MaskFinder()
    ego_from_cam = np.eye(4)
    ego_from_cam[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    ego_from_cam[2, 3] = 1.5
    cam = Camera("front", K, SIZE, ego_from_cam).resized((factor * SIZE[0], factor * SIZE[1]))
    rig = Rig((cam, replace(cam, name="bare")))
    for number, (x_m, y_m, yaw) in enumerate(places):
        at = pose((x_m, y_m, 0.0), (math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)))
        masks = {"front": own, "bare": own & False}
        images = {name: cv2.resize(looking(at, ground, mask, rng), cam.size) for name, mask in masks.items()}
        stamps = dict.fromkeys(rig.names, number)
        finder.add(Frame(number, at, rig, images, stamps, dict.fromkeys(rig.names, at), has_pose=placed))
    return finder


def way(turn_deg: float, count: int = 24, step_m: float = 1.5):
    """Straight ahead, then a bend, then straight."""
    x, y, yaw = -25.0, 0.0, 0.0
    for i in range(count):
        yield x, y, yaw
        yaw += math.radians(turn_deg) / (count // 2) * (count // 4 <= i < count // 4 + count // 2)
        x, y = x + step_m * math.cos(yaw), y + step_m * math.sin(yaw)


def test_the_body_is_found_and_nothing_else(ground, tmp_path):
    found = drive(ground, body(), way(70)).found()
    exact = cv2.resize(body().astype(np.uint8), (640, 360), interpolation=cv2.INTER_NEAREST) > 0
    mask = found["front"].mask
    assert mask.shape == (360, 640) and not found["front"].reason
    assert (mask & exact).sum() / (mask | exact).sum() > 0.8
    assert not found["bare"].mask.any() and not found["bare"].reason  # neither sky nor lines nor far ground
    lines = write_found(found, tmp_path)
    assert "bare: no pixel shows the robot itself" in lines[0] and "front.png" in lines[1]
    written = cv2.imread(str(tmp_path / "front.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(written > 127, mask) and set(np.unique(written)) == {0, 255}
    shown = cv2.imread(str(tmp_path / PICTURE))[..., ::-1].astype(int)
    assert shown.shape == (180, 640, 3)
    tile = shown[:, 320:]
    assert (tile[165:175, 100:220, 0] - tile[165:175, 100:220, 1]).mean() > 60  # the bonnet is red
    assert not (tmp_path / "bare.png").exists()


def test_a_body_is_told_from_the_empty_road_beside_it():
    """Asphalt without marks hardly changes; farther on there is ever more to see. Only the bonnet has an edge."""
    (w, h), rng, own = SIZE, np.random.default_rng(0), body()
    more = np.linspace(60, 0, h)[:, None] ** 2 / 60
    images = []
    for _ in range(24):
        seen = cv2.GaussianBlur(rng.normal(0, 1, (h, w)).astype(np.float32), (0, 0), 3)
        grey = 105 + more * seen / seen.std() + rng.normal(0, 1.5, (h, w))
        grey[own] = 190
        images.append(np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2))
    found = own_pixels(np.stack(images))
    assert (found & own).sum() / (found | own).sum() > 0.8


def test_too_little_motion_is_said_and_nothing_claimed(ground):
    own = body()
    standing = drive(ground, own, [(0.0, 0.0, 0.001 * i) for i in range(5)]).found()["front"]
    assert not standing.mask.any() and standing.images == 1 and f"{LEAST} are needed" in standing.reason
    straight = drive(ground, own, way(3, 12)).found()["front"]
    assert not straight.mask.any() and "turned by 3 degrees" in straight.reason
    lost = drive(ground, own, way(70, 3), placed=False).found()["front"]
    assert not lost.mask.any() and "no poses" in lost.reason


def test_a_bag_is_searched_and_its_masks_are_used_when_it_is_read_again(ground, tmp_path):
    """`occ bag check --ego-mask BAG/masks`: a robot that turns, its images raw in a bag."""
    pytest.importorskip("rosbags")
    from bag_robot import T0, Robot, S
    from typer.testing import CliRunner

    from occ_core.bags import messages as msg
    from occ_core.cli.main import app
    from occ_core.geometry import quaternion_from_rotation
    from occ_core.sources.open import open_source

    robot, rng, own = Robot(), np.random.default_rng(0), body()
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    mount = pose((0, 0, 1.5), quaternion_from_rotation(optical))
    robot.add("/tf_static", T0, msg.transforms(T0, [("base_link", "front", mount)]))
    info = msg.camera_info(T0, "front", Camera("front", K, SIZE, np.eye(4)))
    robot.add("/front/camera_info", T0, info)
    for number, (x_m, y_m, yaw) in enumerate(way(70, 16, 2.0)):
        stamp, at = T0 + number * S // 2, pose((x_m, y_m, 0.0), (math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)))
        robot.add("/tf", stamp, msg.transforms(stamp, [("odom", "base_link", at)]))
        robot.add("/front/image_raw", stamp, msg.image(stamp, "front", looking(at, ground, own, rng)))
    bag = robot.write(tmp_path / "drive")
    result = CliRunner().invoke(app, ["bag", "check", str(bag), "--ego-mask", str(bag / "masks")])
    assert result.exit_code == 0, result.output
    assert "show the robot itself" in " ".join(result.output.split()) and (bag / "masks" / PICTURE).is_file()
    blind = open_source(bag)[0].rig["front"].blind
    assert (blind & own).sum() / (blind | own).sum() > 0.8


def test_a_short_data_set_says_why_nothing_was_found_and_is_asked_once(tmp_path):
    import small_nuscenes

    from occ_core.labels.ego_finder import find_masks

    small_nuscenes.make(tmp_path, keyframes=3, sweeps=0)
    lines = list(find_masks(tmp_path))
    assert len(lines) == 2 and all("too little motion" in line and line.startswith("scene-") for line in lines)
    assert list(find_masks(tmp_path)) == [] and len(list(tmp_path.glob(f"masks/*/{PICTURE}"))) == 1
