"""SemanticKITTI source: the real sample against the files' own matrices, and a small written one, damaged."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from small_kitti import CALIBRATION, ROW

from occ_core.errors import CorruptInput, MissingInput
from occ_core.sources.kitti import CAMERA, SemanticKittiSource
from occ_core.teachers.lidar import read_kitti_labels


@pytest.fixture
def small(tmp_path):
    """Two frames; the camera goes 2 m forward between them."""
    folder = tmp_path / "sequences/03"
    for name in ("image_2", "velodyne", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "calib.txt").write_text(CALIBRATION)
    (folder / "poses.txt").write_text(ROW.format(x=0, z=0) + ROW.format(x=0, z=2))
    (folder / "times.txt").write_text("0.0e+00\n1.04e-01\n")
    for token in ("000000", "000001"):
        cv2.imwrite(str(folder / f"image_2/{token}.png"), np.full((20, 40, 3), (255, 0, 0), np.uint8))
        np.float32([[5, 1, -1, 0.5], [9, 0, 0, 1.0]]).tofile(folder / f"velodyne/{token}.bin")
    return tmp_path


def test_frames_of_a_written_set(small):
    source = SemanticKittiSource(small)
    assert (source.scenes, source.tokens, len(source), source.check()) == (["03"], ["000000", "000001"], 2, [])
    first, second = source
    assert (second.scene, second.token, second.stamp_ns, second.is_keyframe) == ("03", "000001", 104_000_000, True)
    np.testing.assert_allclose(first.world_from_ego, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(second.world_from_ego[:3, 3], (2, 0, 0), atol=1e-12)  # forward is the LiDAR's x
    assert first.rig is second.rig and first.images[CAMERA][0, 0].tolist() == [0, 0, 255]
    np.testing.assert_allclose(first.rig[CAMERA].ego_from_cam[:3, 3], (0.3, 0.1, -0.1), atol=1e-12)
    assert first.lidar.points_lidar_m.tolist() == [[5, 1, -1], [9, 0, 0]]
    assert first.lidar.intensity.tolist() == [127.5, 255]
    assert source.labels_path(1) == small / "sequences/03/labels/000001.label"
    (small / "sequences/03/velodyne/000001.bin").write_bytes(b"")
    assert source.check() == [small / "sequences/03/velodyne/000001.bin"]


DAMAGE = {
    "calib.txt": [
        ("P2: 1 2\nTr: 3\n", "calib.txt: P2: must be 12"),
        ("P0: 1\n", "calib.txt: no line 'P2:'"),
        (CALIBRATION.replace("Tr: 0 -1", "Tr: 0 -3"), "calib.txt: Tr: the pose must be a rigid"),
        (CALIBRATION.replace("P2: 50", "P2: fifty"), "calib.txt: P2: .*fifty"),
        (CALIBRATION.replace("P2: 50 0 20 5 0 50", "P2: 50 0 20 5 0 0"), "calib.txt: P2 is no projection"),
    ],
    "poses.txt": [
        ("", "poses.txt: the file is empty"),
        (ROW.format(x=0, z=0) + "1 2 3\n", "poses.txt, line 2: must be 12"),
        (ROW.format(x="nan", z=0), "poses.txt, line 1: must be 12 finite"),
    ],
    "times.txt": [("0\n", "times.txt: 1 times for 2 poses"), ("\xff\n", "times.txt: not a text file")],
    "image_2/000000.png": [
        ("none", "000000.png: .*neither JPEG nor PNG"),
        ("", "000000.png: file is missing or empty"),
    ],
    "velodyne/000000.bin": [("0123456789", "000000.bin: 10 bytes are no whole"), ("", "000000.bin: file is missing")],
}


@pytest.mark.parametrize(
    ("name", "text", "message"), [(name, *case) for name, cases in DAMAGE.items() for case in cases]
)
def test_a_damaged_file_is_named(small, name, text, message):
    (small / "sequences/03" / name).write_bytes(text.encode("latin-1"))
    with pytest.raises((CorruptInput, MissingInput), match=message):
        _ = SemanticKittiSource(small)[0].lidar


def test_what_is_not_there_is_named(small):
    with pytest.raises(MissingInput, match="no sequence '07' with poses, only: 03"):
        SemanticKittiSource(small, ["07"])
    with pytest.raises(MissingInput, match="is it SemanticKITTI"):
        SemanticKittiSource(small / "sequences")
    (small / "sequences/03/times.txt").unlink()
    with pytest.raises(MissingInput, match="times.txt: no such file"):
        SemanticKittiSource(small)


def test_real_frames_are_those_of_the_files_matrices(shared_data):
    root = shared_data("semantickitti_seq08_10f")
    source = SemanticKittiSource(root)
    assert (source.scenes, len(source), source.check()) == (["08"], 10, [])
    lines = (root / "sequences/08/calib.txt").read_text().splitlines()
    p2, tr = (np.array([float(word) for line in lines if line.startswith(name) for word in line.split()[1:]])
              .reshape(3, 4) for name in ("P2:", "Tr:"))  # fmt: skip
    first, last = source[0], source[9]
    points = last.lidar.points_lidar_m.astype(np.float64)
    in_cam0 = points @ tr[:, :3].T + tr[:, 3]
    u, v, w = p2 @ np.vstack([in_cam0.T, np.ones(len(points))])
    camera = last.rig[CAMERA]
    pixels, visible = camera.project((points - camera.ego_from_cam[:3, 3]) @ camera.ego_from_cam[:3, :3])
    np.testing.assert_allclose(pixels[visible], np.stack([u / w, v / w], axis=1)[visible], atol=0.01)
    assert visible.sum() > 15000
    assert len(read_kitti_labels(source.labels_path(9))) == len(points)
    pose = np.loadtxt(root / "sequences/08/poses.txt")[9].reshape(3, 4)
    in_world = in_cam0 @ pose[:, :3].T + pose[:, 3]  # of camera 0's first place, which is the world of poses.txt
    expected = (in_world - tr[:, 3]) @ tr[:, :3]
    relative = np.linalg.inv(first.world_from_ego) @ last.world_from_ego
    np.testing.assert_allclose(points @ relative[:3, :3].T + relative[:3, 3], expected, atol=1e-3)
    ground = (np.hypot(*points[:, :2].T) < 10) & (np.abs(points[:, 1]) < 2)
    assert -1.8 < np.median(points[ground, 2]) < -1.6  # z is up, and the LiDAR is on the roof
