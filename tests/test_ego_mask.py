"""Ego masks: one file format, read in one place, and what labels, tables and camera networks make of it."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml
from label_scenes import SMALL_GRID, WALL, camera, frame, maps
from model_fixtures import SMALL
from model_fixtures import camera as level

from occ_core.camera import Camera, Rig
from occ_core.ego_mask import file_name, mask_files, masked, with_masks, write_mask
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.labels.lift import Lifter
from occ_core.labels.recipes import PRESETS
from occ_core.models.easyocc.table import build_table
from occ_core.network_input.preprocess import Preprocess
from occ_core.rig_file import load_rig_file
from occ_core.taxonomy import OCC3D


def lower_half(cam: Camera) -> np.ndarray:
    mask = np.zeros(cam.size[::-1], bool)
    mask[cam.size[1] // 2 :] = True
    return mask


def test_a_mask_is_read_as_it_was_written_whatever_made_the_png(tmp_path):
    cam = level("c", 0)
    mask = np.random.default_rng(0).random(cam.size[::-1]) > 0.5
    write_mask(tmp_path / "a.png", mask)
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED), np.where(mask, 255, 0))
    colour = np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 4, axis=2)
    cv2.imwrite(str(tmp_path / "b.png"), colour)  # with an alpha channel, as drawing programs save
    for name in ("a", "b"):
        assert np.array_equal(masked(cam, tmp_path / f"{name}.png").blind, mask)
    write_mask(tmp_path / "none.png", np.zeros_like(mask))
    assert masked(cam, tmp_path / "none.png").blind is None


def test_the_scenes_own_mask_comes_before_the_data_sets(tmp_path):
    rig = Rig((level("front", 0), level("cam/left", 90), level("back", 180)))
    own, common = lower_half(rig["front"]), ~lower_half(rig["front"])
    write_mask(tmp_path / "masks" / "front.png", common)
    write_mask(tmp_path / "masks" / "scene-1" / "front.png", own)
    write_mask(tmp_path / "masks" / file_name("cam/left"), common)
    here, there = with_masks(rig, tmp_path, "scene-1"), with_masks(rig, tmp_path, "scene-2")
    assert np.array_equal(here["front"].blind, own) and np.array_equal(there["front"].blind, common)
    assert np.array_equal(here["cam/left"].blind, common) and here["back"].blind is None
    assert len({rig.fingerprint, here.fingerprint, there.fingerprint}) == 3
    bag = tmp_path / "drive.mcap"
    bag.touch()
    assert set(mask_files(bag, "drive", rig.names)) == {"front", "cam/left"}
    assert with_masks(rig, tmp_path / "masks", "scene-1") is rig


def test_masks_that_do_not_fit_are_refused_by_name(tmp_path):
    cam = level("c", 0)
    write_mask(tmp_path / "small.png", np.ones((10, 20), bool))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(CorruptInput, match=r"small.png: must be 320 x 180 px as its image, is 20 x 10"):
        masked(cam, tmp_path / "small.png")
    with pytest.raises(CorruptInput, match=r"text.png: no picture"):
        masked(cam, tmp_path / "text.png")
    with pytest.raises(MissingInput, match="absent.png"):
        masked(cam, tmp_path / "absent.png")
    with pytest.raises(InvalidInput, match=r"'c': blind must be bool \(180, 320\)"):
        replace(cam, blind=np.zeros((2, 2), bool))


def test_a_rig_file_names_masks_beside_itself(tmp_path):
    entry = {
        "size_px": [64, 48], "focal_px": [50, 50], "center_px": [31.5, 23.5], "position_m": [1, 0, 1],
        "quaternion_xyzw": [-0.5, 0.5, -0.5, 0.5], "ego_mask": "masks/front.png",
    }  # fmt: skip
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump({"cameras": {"front": entry}}))
    with pytest.raises(MissingInput, match="front.png"):
        load_rig_file(tmp_path / "rig.yaml")
    mask = np.zeros((48, 64), bool)
    mask[40:, 10:50] = True
    write_mask(tmp_path / "masks" / "front.png", mask)
    (front,) = load_rig_file(tmp_path / "rig.yaml")
    assert np.array_equal(front.camera.blind, mask)


def test_a_mask_goes_through_resize_and_crop_as_the_image_does():
    cam = replace(level("c", 0, (640, 480)), blind=np.zeros((480, 640), bool))
    picture = np.zeros((480, 640, 3), np.uint8)
    picture[300:400, 200:420] = 255
    cam.blind[300:400, 200:420] = True
    preprocess = Preprocess(128, 64)
    blind = preprocess.camera(cam).blind
    assert blind.shape == (64, 128) and blind.any()
    assert np.array_equal(blind, preprocess.image(picture)[..., 0] > 127)


def test_a_blind_pixel_sees_nothing():
    cam = level("c", 0)
    blind = lower_half(cam)
    points = np.random.default_rng(0).uniform((-5, -3, 1), (5, 3, 20), (5000, 3))
    pixels, plain = cam.project(points)
    _, seen = replace(cam, blind=blind).project(points)
    expected = plain.copy()
    expected[plain] = np.rint(pixels[plain, 1]) < 90
    assert np.array_equal(seen, expected) and 0 < seen.sum() < plain.sum()


def test_cells_that_only_own_pixels_look_at_are_in_no_table_and_another_camera_takes_over():
    front, twin = level("front", 0), level("twin", 4)
    blind = replace(front, blind=lower_half(front))
    rows = SMALL.feature_size[0] * SMALL.feature_size[1] * SMALL.depth_bins
    alone, masked_alone = build_table(Rig((front,)), SMALL), build_table(Rig((blind,)), SMALL)
    lost = (alone.voxel_index < rows) & (masked_alone.voxel_index == rows)
    assert lost.any() and (masked_alone.voxel_index[~lost] == alone.voxel_index[~lost]).all()
    centers = SMALL.grid.centers_m().reshape(-1, 3)[lost] - front.ego_from_cam[:3, 3]
    assert (centers[:, 2] < 0).all()  # a level camera's lower half
    both = build_table(Rig((blind, twin)), SMALL).voxel_index
    assert (both[lost] >= rows).all() and (both[lost] < 2 * rows).mean() > 0.9
    assert np.array_equal(alone.rays, masked_alone.rays)


@pytest.mark.parametrize("recipe", ["best", "single", "completed"])
def test_own_pixels_give_neither_occupied_nor_free_evidence(recipe):
    """The robot's bonnet, which a teacher takes for a wall near by, and a ray through it."""
    cam = camera()
    own = lower_half(cam)
    depth, kind = np.full((64, 96), 5.0, np.float32), np.full((64, 96), WALL, np.uint8)
    depth[own] = 1.2
    recipe = PRESETS[recipe].model_copy(update={"min_confidence": 0.0, "outlier_points": 0})

    def lifted(of: Camera, depth_m):
        classes, depths = maps(depth_m, kind)
        return Lifter(recipe, SMALL_GRID, OCC3D).lift(frame(cameras=(of,)), {of.name: classes}, {of.name: depths})

    plain, blind = lifted(cam, depth), lifted(replace(cam, blind=own), depth)
    unknown = depth.copy()
    unknown[own] = np.nan
    nothing = lifted(cam, unknown)  # as if the teacher had said nothing there
    near = plain.points_ego_m[:, 0] < 2
    assert plain.count[near].sum() > 1000 and not (blind.points_ego_m[:, 0] < 2).any()
    assert blind.count.sum() == nothing.count.sum() and np.array_equal(blind.passes, nothing.passes)
    assert blind.passes.sum() < plain.passes.sum()


def test_camera_networks_do_not_look_through_own_pixels_nor_learn_there():
    torch = pytest.importorskip("torch")
    from occ_core.losses.photometric import as_float, photometric_loss, smoothness_loss
    from occ_core.network_input.projection import in_view
    from occ_core.network_input.rig_inputs import rig_inputs

    cam = level("c", 0, (64, 32), 40.0)
    rig = Rig((replace(cam, blind=lower_half(cam)),))
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 64, 3), dtype=np.uint8)
    inputs = rig_inputs(image, np.ones(1, bool), rig, Preprocess(64, 32)).batch()
    assert torch.equal(inputs.sees[0, 0], torch.from_numpy(~lower_half(cam)))
    above, below = torch.tensor([[5.0, 0.1, 2.0], [5.0, 0.1, 1.0]])[:, None]
    assert in_view(above, inputs).all() and not in_view(below, inputs).any()

    depth = torch.full((1, 32, 64), 4.0, requires_grad=True)
    images = as_float(torch.from_numpy(image))
    motion = torch.eye(4)
    motion[2, 3] = -0.5
    neighbours = images.roll(3, dims=3)[:, None]
    arguments = images, neighbours, inputs.intrinsics[0], motion[None, None], torch.ones(1, 1, dtype=torch.bool)
    photometric_loss(depth, *arguments, inputs.sees[0]).backward()
    own = torch.from_numpy(lower_half(cam))[None]
    learnt = depth.grad != 0
    assert learnt[~own].any() and not learnt[:, 17:].any()  # row 16 is beside the last that shows the world
    depth.grad = None
    (photometric_loss(depth, *arguments)).backward()
    assert (depth.grad != 0)[:, 17:].any()
    slope = torch.zeros(1, 32, 64)
    slope[:, 20:] = 1.0
    assert smoothness_loss(slope + 0.1, images, inputs.sees[0]) == 0 < smoothness_loss(slope + 0.1, images)
