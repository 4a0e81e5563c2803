"""SelfOcc's planes: attention and head against loops."""

import math

import pytest

torch = pytest.importorskip("torch")

from selfocc_fixtures import config  # noqa: E402

from occ_core.models.selfocc.encoder import ImageAttention, PlaneEncoder, SeenReferences, normal_points_m  # noqa: E402
from occ_core.models.selfocc.head import SdfHead  # noqa: E402

torch.set_num_threads(1)


def test_points_on_the_normals_by_hand():
    c = config()
    for normal, (rows, columns) in enumerate([(1, 2), (0, 2), (0, 1)]):
        points = normal_points_m(c, normal)
        assert points.shape == (c.vertices[rows] * c.vertices[columns], c.cross_points[normal], 3)
        cell = 3 * c.vertices[columns] + 5  # row 3, column 5
        for reference in range(c.cross_points[normal]):
            point = points[cell, reference]
            assert float(point[rows]) == pytest.approx(c.grid.origin_m[rows] + 3 * c.spacing_m[rows], abs=1e-5)
            assert float(point[columns]) == pytest.approx(c.grid.origin_m[columns] + 5 * c.spacing_m[columns], abs=1e-5)
            side = c.grid.upper_m[normal] - c.grid.origin_m[normal]
            at = c.grid.origin_m[normal] + (reference + 0.5) / c.cross_points[normal] * side
            assert float(point[normal]) == pytest.approx(at, abs=1e-5)


def test_references_between_planes_share_the_axes_they_have_in_common():
    encoder = PlaneEncoder(config(), 2)
    assert encoder.references.shape == (2 * 21 * 9 + 21 * 21, 3, 3, 2)
    cell = encoder.references[21 * 9 + 4 * 9 + 7]  # plane of x and z: x vertex 4, z vertex 7
    x, z, along = (4 + 0.5) / 21, (7 + 0.5) / 9, [1 / 6, 3 / 6, 5 / 6]
    expected = [[(z, y) for y in along], [(z, x)] * 3, [(y, x) for y in along]]  # (column, row) on each plane
    torch.testing.assert_close(cell, torch.tensor(expected))


def bilinear(image, x, y):
    total = torch.zeros(image.shape[0])
    for i in (math.floor(x), math.floor(x) + 1):
        for j in (math.floor(y), math.floor(y) + 1):
            if 0 <= i < image.shape[2] and 0 <= j < image.shape[1]:
                total += (1 - abs(x - i)) * (1 - abs(y - j)) * image[:, j, i]
    return total


def test_image_attention_equals_loops_over_what_is_visible():
    torch.manual_seed(0)
    layer = ImageAttention(channels=4, heads=2, levels=2, references=3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    query = torch.randn(1, 5, 4)
    levels = [torch.randn(1, 2, 4, 4, 6), torch.randn(1, 2, 4, 2, 3)]
    rows = [torch.tensor([0, 1, 4, 8, 13]), torch.tensor([1, 12])]  # cell * 3 + reference; cell 3 is seen by none
    sights = [[SeenReferences(r, torch.rand(len(r), 2)) for r in rows]]
    with torch.no_grad():
        out = layer(query, sights, levels)
        offsets, logits = layer.places(query)
        for cell in range(5):
            heads = []
            for head in range(2):
                total, norm = torch.zeros(2), 0.0
                for n, sight in enumerate(sights[0]):
                    for row, place in zip(sight.rows.tolist(), sight.places, strict=True):
                        if row // 3 != cell:
                            continue
                        for level, features in enumerate(levels):
                            h, w = features.shape[-2:]
                            kernel = layer.value.weight[2 * head : 2 * head + 2, :, 0, 0]
                            value = torch.einsum("dc,chw->dhw", kernel, features[0, n])
                            value = value + layer.value.bias[2 * head : 2 * head + 2, None, None]
                            off = offsets[0, cell, head, level, row % 3]
                            score = math.exp(float(logits[0, cell, head, level, row % 3]))
                            x, y = place * torch.tensor([w, h]) - 0.5 + off
                            total += score * bilinear(value, float(x), float(y))
                            norm += score
                heads.append(total / norm if norm else total)
            expected = layer.out.weight @ torch.cat(heads) + layer.out.bias
            torch.testing.assert_close(out[0, cell], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ["bev", "tpv"])
def test_the_head_is_a_network_on_the_sum_of_plane_features(encoder):
    torch.manual_seed(0)
    c = config(encoder=encoder)
    head = SdfHead(c)
    top = torch.randn(2, 21, 21, 16)
    planes = {2: top}
    if encoder == "tpv":
        planes |= {0: torch.randn(2, 21, 9, 16), 1: torch.randn(2, 21, 9, 16)}
    with torch.no_grad():
        volume = head(planes)
        for b, x, y, z in [(0, 0, 0, 0), (1, 20, 3, 8), (0, 7, 19, 4)]:
            beside = head.height[z] if encoder == "bev" else planes[0][b, y, z] + planes[1][b, x, z]
            out = head.out(torch.relu(head.hidden(top[b, x, y] + beside)))
            height_m = c.grid.origin_m[2] + z * c.spacing_m[2]
            assert float(volume.sdf_m[b, x, y, z]) == pytest.approx(float(out[0]) + min(height_m, 1.0), abs=1e-4)
            torch.testing.assert_close(volume.rgb[b, x, y, z], out[1:4].sigmoid(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(volume.class_logits[b, x, y, z], out[4:], rtol=1e-4, atol=1e-5)
