"""Pictures and recordings show what is there, at the place where it is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import rerun_file

from occ_core.grid import OCC3D_GRID
from occ_core.occupancy import Occupancy
from occ_core.show import album, pictures
from occ_core.show.recording import RerunRecording
from occ_core.taxonomy import OCC3D

CAR = OCC3D.id_of("car")


def one_car(index: tuple[int, int, int]) -> Occupancy:
    labels = np.full(OCC3D_GRID.shape, OCC3D.free_id, np.uint8)
    labels[index] = CAR
    return Occupancy(OCC3D_GRID, OCC3D, labels, np.ones(OCC3D_GRID.shape, bool))


def colored(image: np.ndarray) -> np.ndarray:
    """(row, column) of pixels in a car's hue."""
    hue = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
    wanted = cv2.cvtColor(np.uint8([[OCC3D.colors[CAR]]]), cv2.COLOR_RGB2HSV).astype(int)[0, 0]
    return np.argwhere((abs(hue[..., 0] - wanted[0]) <= 2) & (hue[..., 1] > 128))


def test_from_above_forward_is_up_and_left_is_left():
    image = pictures.from_above(one_car((190, 150, 3)), cell_px=2)
    assert image.shape == (400, 400, 3)
    rows, columns = colored(image).T
    assert (rows.min(), rows.max()) == (2 * 9, 2 * 9 + 1)  # x = 190 of 200: ten cells from the top
    assert (columns.min(), columns.max()) == (2 * 49, 2 * 49 + 1)  # y = 150 of 200 is left of the middle


def test_from_above_tells_unobserved_from_free():
    occupancy = one_car((0, 0, 0))
    occupancy.observed[100:] = False
    image = pictures.from_above(occupancy, cell_px=1)
    assert tuple(image[10, 10]) == pictures.UNOBSERVED_RGB
    assert tuple(image[150, 150]) == pictures.BACKGROUND_RGB


def test_mosaic_names_a_camera_without_image():
    image = np.full((90, 160, 3), 200, np.uint8)
    rows = pictures.camera_rows(
        ["CAM_BACK", "CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"]
    )
    assert rows[0] == ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"]
    assert pictures.camera_rows(["a", "b"]) == [["a", "b"]]
    assert pictures.camera_rows(["a", "b", "c", "d"]) == [["a", "b", "c"], ["d"]]
    sheet = pictures.mosaic({"a": image}, [["a", "b"]], (160, 90))
    assert sheet.shape == (90, 320, 3)
    assert np.all(sheet[60, :160] == 200) and np.all(sheet[60, 160:] == 128)


def test_sheet_is_a_png_that_opencv_reads_back(tmp_path):
    truth = one_car((100, 100, 2))
    sheet = pictures.compare({"CAM_FRONT": np.zeros((90, 160, 3), np.uint8)}, truth, truth, "a title")
    pictures.save_png(tmp_path / "a" / "sheet.png", sheet)
    back = cv2.cvtColor(cv2.imread(str(tmp_path / "a" / "sheet.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(back, sheet)


def test_spread_takes_ends_and_even_steps():
    indices = [3, 4, 8, 9, 12]
    assert album.spread(indices, 3) == [3, 8, 12]
    assert album.spread(indices, 2) == [3, 12]
    assert album.spread(indices, 1) == [3]
    assert album.spread(indices, 0) == []
    assert album.spread(indices, 50) == indices
    assert album.spread([7], 4) == [7]


def test_album_draws_what_is_chosen_and_records_everything(tmp_path):
    pytest.importorskip("rerun", reason="recordings need rerun: pip install 'occ_ros[viz]'")
    recorded = []

    def draw(index):
        return f"scene-{index // 10}", np.full((4, 6, 3), index, np.uint8)

    def record(stream, index):
        recorded.append(index)
        stream.log(index, {"CAM": np.zeros((8, 8, 3), np.uint8)})

    written = album.write_album(tmp_path / "out", "test", [2, 5, 13], 2, draw, record)
    names = [path.relative_to(tmp_path / "out").as_posix() for path in written]
    assert names == ["recording.rrd", "pictures/scene-0_0002.png", "pictures/scene-1_0013.png"]
    assert recorded == [2, 5, 13]
    assert [int(cv2.imread(str(path))[0, 0, 0]) for path in written[1:]] == [2, 13]
    assert all(path.stat().st_size > 0 for path in written)
    (alone,) = album.write_album(tmp_path / "still", "test", [2], 1, draw, None)
    assert [path for path in (tmp_path / "still").rglob("*") if path.is_file()] == [alone]


def test_recording_is_complete_or_absent(tmp_path):
    pytest.importorskip("rerun", reason="recordings need rerun: pip install 'occ_ros[viz]'")
    path = tmp_path / "r.rrd"
    images = {"CAM_FRONT": np.zeros((90, 160, 3), np.uint8)}
    with RerunRecording(path, "test") as stream:
        stream.log(10**18, images, one_car((1, 2, 3)), one_car((4, 5, 6)))
        stream.log(10**18 + 123_456_789, images, one_car((1, 2, 4)))
    found = rerun_file.logged(path)
    assert [stamp_ns for stamp_ns, _ in found["/cameras/CAM_FRONT"]] == [10**18, 10**18 + 123_456_789]
    (first, at_first), (second, at_second) = found["/world/predicted"]
    assert (first, second) == (10**18, 10**18 + 123_456_789)
    car_rgb = tuple(OCC3D.palette[CAR].tolist())
    assert (rerun_file.cells(at_first), rerun_file.cells(at_second)) == ({(1, 2, 3): car_rgb}, {(1, 2, 4): car_rgb})
    np.testing.assert_allclose(at_first["VoxelGridMap:voxel_size"], [[0.4, 0.4, 0.4]])
    np.testing.assert_allclose(at_first["VoxelGridMap:translation"], [OCC3D_GRID.origin_m])
    ((_, true),) = found["/world/true"]
    assert set(rerun_file.cells(true)) == {(4, 5, 6)}
    assert set(rerun_file.views(path)) == {
        ("/cameras/CAM_FRONT", "CAM_FRONT"), ("world", "predicted"), ("world", "true")
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt), RerunRecording(tmp_path / "broken.rrd", "test") as stream:
        stream.log(10**18, images)
        raise KeyboardInterrupt
    assert [item.name for item in tmp_path.iterdir()] == ["r.rrd"]
