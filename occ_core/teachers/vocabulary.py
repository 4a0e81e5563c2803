"""What other people's classes are called, and which class of a taxonomy each of them is."""

from __future__ import annotations

from occ_core.errors import InvalidInput
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, Taxonomy
from occ_core.teachers.base import UNKNOWN

SKY = ("sky", "free", "empty")
NOTHING = ("unknown", "void", "ignore", "unlabeled", "unlabelled")

MEANS: dict[str, tuple[str, str]] = {
    # name -> (class of Occ3D, class of SemanticKITTI); "" where the taxonomy has none: the pixel's class is unknown.
    # The two taxonomies' own names, seen from the other one:
    "others": ("others", ""), "barrier": ("barrier", "fence"), "bus": ("bus", "other_vehicle"),
    "construction_vehicle": ("construction_vehicle", "other_vehicle"), "pedestrian": ("pedestrian", "person"),
    "traffic_cone": ("traffic_cone", ""), "trailer": ("trailer", "other_vehicle"),
    "driveable_surface": ("driveable_surface", "road"), "other_flat": ("other_flat", "other_ground"),
    "manmade": ("manmade", "building"), "other_vehicle": ("", "other_vehicle"), "person": ("pedestrian", "person"),
    "bicyclist": ("bicycle", "bicyclist"), "motorcyclist": ("motorcycle", "motorcyclist"),
    "road": ("driveable_surface", "road"), "parking": ("driveable_surface", "parking"),
    "other_ground": ("other_flat", "other_ground"), "building": ("manmade", "building"), "fence": ("manmade", "fence"),
    "trunk": ("vegetation", "trunk"), "pole": ("manmade", "pole"), "traffic_sign": ("manmade", "traffic_sign"),
    # Cityscapes: its walls stand alone, as SemanticKITTI's fences do; nuScenes counts a rider to what is ridden,
    # mostly bicycles; SemanticKITTI gives traffic lights no class of the 19.
    "wall": ("manmade", "fence"), "traffic_light": ("manmade", ""), "rider": ("bicycle", "bicyclist"),
    "train": ("bus", "other_vehicle"),
    # OccNeRF's prompts:
    "cone": ("traffic_cone", ""), "crane": ("construction_vehicle", "other_vehicle"),
    "tree": ("vegetation", "vegetation"),
}  # fmt: skip

ID_LISTS: dict[str, dict[int, str]] = {
    # Cityscapes' 19 train ids (Cordts et al., CVPR 2016).
    "cityscapes": dict(enumerate((
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic_light", "traffic_sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ))),
    # The `_mask.bin` files of OccNeRF's label script; -1 is unknown there.
    "occnerf": dict(enumerate((
        "car", "road", "bus", "truck", "terrain", "tree", "sidewalk", "bicycle", "barrier", "pedestrian", "building",
        "motorcycle", "crane", "trailer", "cone", "sky",
    ), start=1)),
}  # fmt: skip


def class_id_of(name: str, taxonomy: Taxonomy) -> int:
    """Id in a taxonomy of a class by its own name, another taxonomy's or Cityscapes'; its free id for the sky, UNKNOWN
    for what it has no class for.

    Raises:
        InvalidInput: a name that nobody knows; names those that would do.
    """
    key = name.strip().lower().replace(" ", "_").replace("-", "_")
    if key in taxonomy.names:
        return taxonomy.id_of(key)
    if key in SKY:
        return taxonomy.free_id
    if key in NOTHING:
        return UNKNOWN
    if key in MEANS and taxonomy.name in (OCC3D.name, SEMANTIC_KITTI.name):
        meant = MEANS[key][taxonomy.name == SEMANTIC_KITTI.name]
        return taxonomy.id_of(meant) if meant else UNKNOWN
    known = ", ".join(dict.fromkeys((*taxonomy.names, "sky", "unknown", *MEANS)))
    raise InvalidInput(f"'{name}' is no class of '{taxonomy.name}' and not known otherwise; there are: {known}")
