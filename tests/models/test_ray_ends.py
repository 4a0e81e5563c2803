"""Where a viewing ray is taken to end, and what is answered above the part of an image that the network is shown."""

import numpy as np
import pytest
from model_fixtures import SMALL, camera
from nano_fixtures import hand_made, judged

from occ_core.camera import Rig
from occ_core.network_input.preprocess import Preprocess
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI

torch = pytest.importorskip("torch")

from occ_core.models.easyocc.logits import CellLogits, ends_in  # noqa: E402
from occ_core.models.easyocc.model import Answer, EasyOcc  # noqa: E402
from occ_core.models.easyocc.table import build_table  # noqa: E402
from occ_core.models.easyocc.thresholds import fit_survival  # noqa: E402
from occ_core.models.lifting import ray_evidence  # noqa: E402

torch.set_num_threads(1)
CAR, ROAD = OCC3D.id_of("car"), OCC3D.id_of("driveable_surface")


@pytest.mark.parametrize("survival", [0.2, 0.5, 0.7])
def test_a_ray_ends_once_where_half_of_it_is_gone_or_never(survival):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 40, 5, 7, generator=generator) + torch.linspace(-8, -1, 7)
    hazard, reached = ray_evidence(logits).reshape(-1, 40, 2).unbind(-1)
    ends = ends_in(reached, reached * torch.sigmoid(hazard), torch.tensor(survival))
    ended = never = 0
    for ray, p in zip(ends, torch.sigmoid(hazard).double(), strict=True):
        left = np.cumprod(1 - p.numpy())
        wanted = np.flatnonzero(left < survival)[:1]
        assert np.array_equal(np.flatnonzero(ray), wanted)
        ended, never = ended + len(wanted), never + (len(wanted) == 0)
    assert ended > 5 and never > 5


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


def test_survival_is_the_one_that_puts_most_upright_things_where_they_are():
    """Ray by ray, for a network that takes all rays for alike: h in each bin, so that a ray's end is one distance."""
    model, scene = EasyOcc(SMALL).eval(), hand_made("s")
    torch.nn.init.zeros_(model.to_hazard.weight)
    torch.nn.init.constant_(model.to_hazard.bias, -2.0)
    fit_survival(model, judged(scene))
    middles_m = (SMALL.depth_edges_m[1:] + SMALL.depth_edges_m[:-1]) / 2
    left = np.cumprod(np.full(SMALL.depth_bins, 1 - 1 / (1 + np.exp(2.0))))
    stands = np.isin(scene["pixel_class"], [i for i in OCC3D.occupied_ids if i not in OCC3D.ground_ids])
    true_m = middles_m[scene["depth"][stands & (scene["depth"] < SMALL.depth_bins)]]
    bands = [true_m[(true_m >= low) & (true_m < high)] for low, high in ((0, 10), (10, 20), (20, 40))]

    def share_near(survival: float) -> float:
        ended = np.flatnonzero(left <= survival)
        end_m = middles_m[ended[0] if len(ended) else -1]
        return float(np.mean([np.mean(np.abs(end_m - band) <= 1) for band in bands if len(band)]))

    shares = [share_near(survival) for survival in np.linspace(0.1, 0.8, 29)]
    assert share_near(float(model.survival) + 1e-6) == pytest.approx(max(shares)) and max(shares) > min(shares)


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
