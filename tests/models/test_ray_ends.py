"""Where a viewing ray is taken to end, and what is answered above the part of an image that the network is shown."""

import numpy as np
import pytest
from model_fixtures import SMALL, camera

from occ_core.camera import Rig
from occ_core.network_input.preprocess import Preprocess
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI

torch = pytest.importorskip("torch")

from occ_core.models.easyocc.logits import CellLogits, end_window, ray_ends  # noqa: E402
from occ_core.models.easyocc.model import Answer, EasyOcc  # noqa: E402
from occ_core.models.easyocc.table import build_table  # noqa: E402
from occ_core.models.lifting import ray_evidence  # noqa: E402

torch.set_num_threads(1)
EDGES_M = 1 + 49 * np.linspace(0, 1, 41) ** 1.4
CAR, ROAD = OCC3D.id_of("car"), OCC3D.id_of("driveable_surface")


def followed(logits):
    """Of each ray, [K, D]: where it is taken to end, and the probability that it ends in each bin."""
    reached = ray_evidence(logits)[:, 1].reshape(-1, logits.shape[1])
    hazard = torch.sigmoid(logits).permute(0, 2, 3, 1).reshape(reached.shape).double().numpy()
    before = np.cumprod(np.c_[np.ones(len(hazard)), 1 - hazard], axis=1)
    return ray_ends(reached, end_window(EDGES_M)).numpy(), before[:, :-1] - before[:, 1:]


def test_a_ray_ends_once_around_where_most_of_it_is_lost_or_never():
    """By a plain sum over finely cut distances, within the last bin that a ray is followed into."""
    generator = torch.Generator().manual_seed(0)
    ends, lost = followed(torch.randn(3, 40, 5, 7, generator=generator) * 2 + torch.linspace(-9, -1, 7))
    fine_m = np.linspace(EDGES_M[0], EDGES_M[-2], 40_001)
    middles_m = (EDGES_M[1:] + EDGES_M[:-1]) / 2
    ended = never = 0
    for ray, p in zip(ends, lost, strict=True):
        density = (p / np.diff(EDGES_M))[np.searchsorted(EDGES_M, fine_m[:-1], side="right") - 1]
        mass = [
            density[(fine_m[:-1] >= 0.85 * m) & (fine_m[:-1] < 1.15 * m)].sum() * np.diff(fine_m)[0] for m in middles_m
        ]
        if p[:-1].sum() > 0.5:
            ended += 1
            assert ray.sum() == 1 and mass[int(ray.argmax())] > max(mass) - 2e-3
        else:
            never += 1
            assert not ray.any()
    assert ended > 20 and never > 20


def test_of_two_walls_a_ray_ends_at_the_likelier_and_not_between_them():
    logits = torch.full((1, 40, 1, 1), -9.0)
    for metres, logit in ((8, -0.9), (30, 2.0)):  # 29 % of all rays, then 63 %
        logits[0, np.searchsorted(EDGES_M, metres) - 1] = logit
    (ends,), (lost,) = followed(logits)
    assert EDGES_M[ends.argmax()] <= 30 * 1.15 and EDGES_M[ends.argmax() + 1] >= 30 * 0.85
    assert 0.25 < lost[np.searchsorted(EDGES_M, 8) - 1] < 0.35


def test_what_stands_is_answered_where_its_ray_ends_though_no_cell_is_probable():
    model = EasyOcc(SMALL).eval()
    classes = torch.zeros(1, 1, 1, 4, len(SMALL.classes) - 1)
    classes[..., :3, CAR] = 1
    classes[..., 3, ROAD] = 1
    ends = torch.tensor([False, True, True, True]).reshape(1, 1, 1, 4)
    observed = torch.tensor([1.0, 1.0, -1.0, 1.0]).reshape(1, 1, 1, 4)
    cells = CellLogits(torch.full((1, 1, 1, 4), -2.0), classes, ends, observed)
    labels, confidence, seen = Answer(model).of(cells)
    free = SMALL.classes.free_id
    assert labels.flatten().tolist() == [free, CAR, free, free]  # by its threshold; ends; hidden; road does not stand
    assert seen.flatten().tolist() == [1, 1, 0, 1]
    p = 1 / (1 + np.exp(2.0))
    np.testing.assert_allclose(confidence.flatten()[:2] / 255, [1 - p, p], atol=1 / 255)


def test_classes_of_the_ground():
    assert {OCC3D.names[i] for i in OCC3D.ground_ids} == {"driveable_surface", "other_flat", "sidewalk", "terrain"}
    kitti = {SEMANTIC_KITTI.names[i] for i in SEMANTIC_KITTI.ground_ids}
    assert kitti == {"road", "parking", "sidewalk", "other_ground", "terrain"}


@pytest.mark.parametrize(
    "lens",
    [
        {"size": (320, 240), "focal_px": 160.0},
        {"size": (320, 180), "focal_px": 200.0},
        {
            "size": (320, 240),
            "focal_px": 95.0,
            "distortion_model": "equidistant",
            "distortion": (0.05, -0.01, 0.0, 0.0),
        },
    ],
)
def test_above_the_input_a_cell_is_told_by_what_stands_below_it(lens):
    """Cell by cell, from two projections: into the image, and into the network's input."""
    whole = camera("a", 20, at=(0.5, 0.1, 1.5), **lens)
    shown = Preprocess(SMALL.input_width, SMALL.input_height).camera(whole)
    table = build_table(Rig((whole,)), SMALL)
    bins, (w, h) = SMALL.depth_bins, SMALL.feature_size
    index = table.voxel_index.reshape(SMALL.grid_shape)
    points = (SMALL.grid.centers_m().reshape(-1, 3) - whole.ego_from_cam[:3, 3]) @ whole.ego_from_cam[:3, :3]
    in_image, in_input = (c.project(points)[1].reshape(SMALL.grid_shape) for c in (whole, shown))
    own = np.full(index.size, w * h * bins)
    uv = shown.project(points)[0]
    visible = in_input.reshape(-1)
    column, row = (np.floor((uv[visible] + 0.5) / 8).astype(int)).T
    distance_m = np.linalg.norm(points[visible], axis=1)
    nth = np.searchsorted(SMALL.depth_edges_m, distance_m, side="right") - 1
    own[visible] = np.where((nth >= 0) & (nth < bins), (row * w + column) * bins + nth, w * h * bins)
    own = own.reshape(index.shape)
    above = 0
    for x, y, z in np.ndindex(*SMALL.grid_shape):
        lower = [k for k in range(z + 1) if in_input[x, y, k]]
        expected = own[x, y, lower[-1]] if lower and in_image[x, y, z] else w * h * bins
        assert index[x, y, z] == expected
        above += bool(lower) and bool(in_image[x, y, z]) and not in_input[x, y, z]
    assert above > 50
