"""What a cell can be: names, colours and roles of the class ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from occ_core.errors import InvalidInput

GROUND = frozenset({"driveable_surface", "other_flat", "sidewalk", "terrain", "road", "parking", "other_ground"})
"""Classes of all taxonomies that lie on the ground."""

UNLABELED = 255
"""Class id of a cell or pixel whose class nobody says: not observed, not labelled, or ignored by a benchmark."""


@dataclass(frozen=True)
class Taxonomy:
    """Class ids are positions in `names`.

    Attributes:
        name: identifies the taxonomy in files.
        names: one per class, the free class included.
        colors: RGB 0..255, one per class.
        free_id: the id that means "nothing is here".
        ignored_ids: classes that the 15-class means leave out (Occ3D: others, other_flat; they cannot be prompted for).
        dynamic_ids: classes that can move by themselves.
        prompts: text prompts for open-vocabulary teachers, one tuple per class; empty where no prompt exists.
        unlabeled_id: value in label files for "no label" (None where the format has none).
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    free_id: int
    ignored_ids: frozenset[int] = frozenset()
    dynamic_ids: frozenset[int] = frozenset()
    prompts: tuple[tuple[str, ...], ...] = ()
    unlabeled_id: int | None = None

    def __post_init__(self) -> None:
        n = len(self.names)
        if not 2 <= n <= UNLABELED:
            raise InvalidInput(f"taxonomy '{self.name}' must have 2..{UNLABELED} classes, got {n}")
        if len(set(self.names)) != n:
            raise InvalidInput(f"taxonomy '{self.name}' has a class name twice: {self.names}")
        if len(self.colors) != n:
            raise InvalidInput(f"taxonomy '{self.name}' has {n} names but {len(self.colors)} colors")
        if self.prompts and len(self.prompts) != n:
            raise InvalidInput(f"taxonomy '{self.name}' has {n} names but {len(self.prompts)} prompt lists")
        for role, ids in (
            ("free_id", {self.free_id}),
            ("ignored_ids", self.ignored_ids),
            ("dynamic_ids", self.dynamic_ids),
        ):
            wrong = [i for i in ids if not 0 <= i < n]
            if wrong:
                raise InvalidInput(f"taxonomy '{self.name}' {role} {wrong} not in 0..{n - 1}")

    def __len__(self) -> int:
        return len(self.names)

    def id_of(self, class_name: str) -> int:
        """Id of a class name.

        Raises:
            InvalidInput: naming the known classes.
        """
        if class_name not in self.names:
            raise InvalidInput(f"taxonomy '{self.name}' has no class '{class_name}', only: {', '.join(self.names)}")
        return self.names.index(class_name)

    @property
    def occupied_ids(self) -> tuple[int, ...]:
        """All ids but the free one."""
        return tuple(i for i in range(len(self.names)) if i != self.free_id)

    @property
    def ground_ids(self) -> tuple[int, ...]:
        """Classes that lie on the ground; all others but the free one stand on it."""
        return tuple(i for i, name in enumerate(self.names) if name in GROUND)

    @property
    def palette(self) -> np.ndarray:
        """uint8 (classes, 3) RGB."""
        return np.array(self.colors, dtype=np.uint8)


# One colour for one thing in all taxonomies. Chosen so that the classes of a taxonomy stay apart in the shades of a lit
# cube, on light and dark ground, and for people who do not tell red from green or blue from yellow: the least
# distances stand in tests/test_palette.py.
COLORS = {
    "others": (65, 72, 67),
    "barrier": (6, 162, 155),
    "fence": (6, 162, 155),
    "bicycle": (209, 2, 244),
    "bus": (255, 220, 4),
    "other_vehicle": (255, 220, 4),
    "car": (255, 166, 1),
    "construction_vehicle": (135, 68, 1),
    "motorcycle": (82, 0, 70),
    "pedestrian": (13, 4, 223),
    "person": (13, 4, 223),
    "traffic_cone": (250, 43, 1),
    "traffic_sign": (250, 43, 1),
    "trailer": (72, 176, 255),
    "truck": (113, 13, 167),
    "driveable_surface": (101, 100, 139),
    "road": (101, 100, 139),
    "other_flat": (174, 104, 102),
    "other_ground": (174, 104, 102),
    "sidewalk": (227, 173, 206),
    "terrain": (160, 207, 110),
    "manmade": (193, 158, 104),
    "building": (193, 158, 104),
    "vegetation": (55, 137, 4),
    "bicyclist": (189, 109, 208),
    "motorcyclist": (254, 87, 153),
    "parking": (134, 170, 248),
    "trunk": (117, 52, 0),
    "pole": (229, 234, 179),
    "free": (255, 255, 255),
    "empty": (255, 255, 255),
}  # fmt: skip


def _colors(names: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple(COLORS[name] for name in names)


_OCC3D_NAMES = (
    "others", "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian",
    "traffic_cone", "trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade",
    "vegetation", "free",
)  # fmt: skip

_SEMANTIC_KITTI_NAMES = (
    "empty", "car", "bicycle", "motorcycle", "truck", "other_vehicle", "person", "bicyclist", "motorcyclist",
    "road", "parking", "sidewalk", "other_ground", "building", "fence", "vegetation", "trunk", "terrain", "pole",
    "traffic_sign",
)  # fmt: skip

OCC3D = Taxonomy(
    name="occ3d",
    names=_OCC3D_NAMES,
    colors=_colors(_OCC3D_NAMES),
    free_id=17,
    ignored_ids=frozenset({0, 12}),
    dynamic_ids=frozenset({2, 3, 4, 5, 6, 7, 9, 10}),
    prompts=(
        (), ("barrier", "barricade"), ("bicycle",), ("bus",), ("car", "vehicle", "sedan", "van"),
        ("excavator", "crane"), ("motorcycle", "scooter"), ("person", "pedestrian"), ("traffic cone",), ("trailer",),
        ("truck", "lorry"), ("highway", "street", "road"), ("traffic island",), ("sidewalk", "walkway"),
        ("grass", "sand", "gravel", "terrain"),
        ("building", "wall", "fence", "pole", "sign", "light", "bridge", "billboard"), ("tree", "bush", "plants"),
        ("sky",),
    ),
)  # fmt: skip
"""Occ3D-nuScenes, 17 classes and free = 17."""

SEMANTIC_KITTI = Taxonomy(
    name="semantic_kitti",
    names=_SEMANTIC_KITTI_NAMES,
    colors=_colors(_SEMANTIC_KITTI_NAMES),
    free_id=0,
    dynamic_ids=frozenset({1, 2, 3, 4, 5, 6, 7, 8}),
    prompts=(
        ("sky",), ("car",), ("bicycle",), ("motorcycle",), ("truck",), ("bus", "trailer", "train"), ("person",),
        ("cyclist",), ("motorcyclist",), ("road",), ("parking lot",), ("sidewalk",), (), ("building",), ("fence",),
        ("tree", "bush"), ("tree trunk",), ("grass", "terrain"), ("pole",), ("traffic sign",),
    ),
    unlabeled_id=UNLABELED,
)  # fmt: skip
"""SemanticKITTI semantic scene completion, empty = 0 and 19 classes; UNLABELED = ignored there."""

TAXONOMIES = {taxonomy.name: taxonomy for taxonomy in (OCC3D, SEMANTIC_KITTI)}
