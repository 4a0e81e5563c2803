"""The class names of other data sets, and the class of a taxonomy that each of them means."""

from __future__ import annotations

import re

from occ_core.errors import InvalidInput
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, UNLABELED, Taxonomy
from occ_core.teachers.closed_set_table import ADE20K, CITYSCAPES, MAPILLARY, Pair

SKY = ("sky", "free", "empty")
NOTHING = ("unknown", "void", "ignore", "unlabeled", "unlabelled")


def _plain(name: str) -> str:
    """Convert a name to lower case, with `_` between words."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


MEANS: dict[str, Pair] = {
    # name -> (class of Occ3D, class of SemanticKITTI); None where the taxonomy has none: the class is unknown.
    **{_plain(name): pair for known in (ADE20K, MAPILLARY, CITYSCAPES) for name, pair in known.items()},
    # The two taxonomies' own names, seen from the other one:
    "others": ("others", None), "barrier": ("barrier", "fence"), "bus": ("bus", "other_vehicle"),
    "construction_vehicle": ("construction_vehicle", "other_vehicle"), "pedestrian": ("pedestrian", "person"),
    "traffic_cone": ("traffic_cone", None), "trailer": ("trailer", "other_vehicle"),
    "driveable_surface": ("driveable_surface", "road"), "other_flat": ("other_flat", "other_ground"),
    "manmade": ("manmade", "building"), "other_vehicle": (None, "other_vehicle"), "person": ("pedestrian", "person"),
    "bicyclist": ("bicycle", "bicyclist"), "motorcyclist": ("motorcycle", "motorcyclist"),
    "other_ground": ("other_flat", "other_ground"), "trunk": ("vegetation", "trunk"),
    # OccNeRF's prompts:
    "cone": ("traffic_cone", None), "crane": ("construction_vehicle", "other_vehicle"),
}  # fmt: skip

ID_LISTS: dict[str, dict[int, str]] = {
    # Cityscapes' 19 train ids (Cordts et al., CVPR 2016).
    "cityscapes": dict(enumerate(CITYSCAPES)),
    # The `_mask.bin` files of OccNeRF's label script; -1 is unknown there.
    "occnerf": dict(enumerate((
        "car", "road", "bus", "truck", "terrain", "tree", "sidewalk", "bicycle", "barrier", "pedestrian", "building",
        "motorcycle", "crane", "trailer", "cone", "sky",
    ), start=1)),
}  # fmt: skip


def class_id_of(name: str, taxonomy: Taxonomy) -> int:
    """The id in a taxonomy of a class, given by its own name, the other taxonomy's or a street data set's; the free id
    for the sky, UNLABELED for a class that the taxonomy does not have.

    Raises:
        InvalidInput: a name that nobody knows; names the taxonomy's.
    """
    key = _plain(name)
    if key in taxonomy.names:
        return taxonomy.id_of(key)
    if key in SKY:
        return taxonomy.free_id
    if key in NOTHING:
        return UNLABELED
    if key in MEANS and taxonomy.name in (OCC3D.name, SEMANTIC_KITTI.name):
        meant = MEANS[key][taxonomy.name == SEMANTIC_KITTI.name]
        return taxonomy.id_of(meant) if meant else UNLABELED
    raise InvalidInput(
        f"'{name}' is no class of '{taxonomy.name}' ({', '.join(taxonomy.names)}), nor of the other taxonomy, of "
        "Cityscapes, Mapillary or ADE20K, nor 'sky' or 'unknown'"
    )
