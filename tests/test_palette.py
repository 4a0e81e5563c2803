"""The colours of classes can be told apart: in sun and shade, on every ground, and by people who see fewer colours."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest
from color_vision import SEEN_FROM_RGB, distances, oklab

from occ_core.show import maps, pictures, solids
from occ_core.taxonomy import OCC3D, TAXONOMIES, Taxonomy

LEAST = {"all cones": 11.5, "no red cones": 6.5, "no green cones": 6.5, "no blue cones": 6.5}
LEAST_IN_SHADE = 0.65  # of these, on the darkest faces that one sees
RVIZ_RGB = (48, 48, 48)


def occupied(taxonomy: Taxonomy) -> np.ndarray:
    return taxonomy.palette[list(taxonomy.occupied_ids)].astype(float)


def least(apart: np.ndarray, taxonomy: Taxonomy) -> tuple[float, str]:
    """The smallest distance of two classes, and which they are."""
    apart = np.where(np.eye(len(apart), dtype=bool), np.inf, apart)
    one, other = np.unravel_index(apart.argmin(), apart.shape)
    names = [taxonomy.names[i] for i in taxonomy.occupied_ids]
    return float(apart.min()), f"{names[one]} and {names[other]}"


def shades() -> list[float]:
    """Light on upright and upper faces in pictures and on the page, lowest cells included."""
    script = (files("occ_core.show") / "page_files" / "voxels.js").read_text()
    page = [float(x) for x in re.search(r"LIGHT\[6\] = float\[6\]\((.*?)\)", script)[1].split(",")]
    page_lowest = float(re.search(r"LIGHT\[int\(cell\.w\)\] \* \(([\d.]+) \+", script)[1])
    drawn = [light for face, light in solids.LIGHT.items() if face != (2, -1)]
    return sorted({1.0, page_lowest * min(page[:4] + page[5:]), solids.LOWEST * min(drawn)})


def test_oklab_is_that_of_its_author():
    known = {
        (255, 0, 0): (62.796, 22.486, 12.585),
        (0, 255, 0): (86.644, -23.389, 17.950),
        (255, 255, 255): (100, 0, 0),
    }
    np.testing.assert_allclose(oklab(np.array(list(known))), list(known.values()), atol=0.01)


def test_grey_is_grey_to_everybody():
    for seen_by in SEEN_FROM_RGB:
        assert np.abs(oklab(np.full(3, 128), seen_by) - oklab(np.full(3, 128))).max() < 0.05


@pytest.mark.parametrize("seen_by", SEEN_FROM_RGB)
@pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=lambda t: t.name)
def test_classes_can_be_told_apart(taxonomy, seen_by):
    colors = occupied(taxonomy)
    assert min(shades()) < 0.7
    for shade in shades():
        distance, pair = least(distances(colors * shade, colors * shade, seen_by), taxonomy)
        assert distance >= LEAST[seen_by] * (1 if shade == 1 else LEAST_IN_SHADE), f"{pair} at {shade}"


@pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=lambda t: t.name)
def test_a_class_in_the_shade_is_no_other_in_the_sun(taxonomy):
    colors = occupied(taxonomy)
    shade = min(light for face, light in solids.LIGHT.items() if face != (2, -1))
    distance, pair = least(distances(colors, colors * shade), taxonomy)
    assert distance >= 6.5, pair


@pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=lambda t: t.name)
def test_classes_stand_out_from_every_ground_and_from_what_is_no_class(taxonomy):
    grounds = [
        solids.BACKGROUND_RGB,
        solids.HIDDEN_RGB,
        pictures.UNOBSERVED_RGB,
        RVIZ_RGB,
        maps.SKY_RGB,
        maps.UNKNOWN_RGB,
    ]
    for ground in grounds:
        apart = distances(occupied(taxonomy), np.array([ground]))[:, 0]
        assert apart.min() >= 7, (taxonomy.names[taxonomy.occupied_ids[int(apart.argmin())]], ground)


def test_one_thing_has_one_colour_in_all_taxonomies():
    kitti = TAXONOMIES["semantic_kitti"]
    same = {"driveable_surface": "road", "manmade": "building", "pedestrian": "person", "barrier": "fence"}
    for name in set(OCC3D.names) & set(kitti.names):
        same[name] = name
    assert {"car", "truck", "sidewalk", "vegetation"} <= set(same)
    for ours, theirs in same.items():
        assert OCC3D.colors[OCC3D.id_of(ours)] == kitti.colors[kitti.id_of(theirs)]


def test_the_measure_refuses_the_colours_of_before():
    """Three oranges: car, trailer and construction vehicle as nuScenes has them."""
    oranges = np.array([(255, 158, 0), (255, 140, 0), (233, 150, 70)], dtype=float)
    apart = distances(oranges, oranges)
    assert apart[~np.eye(3, dtype=bool)].max() < LEAST["all cones"] / 2
