"""What a cell can be: names, colours and roles of the class ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from occ_core.errors import InvalidInput


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
        if not 2 <= n <= 255:
            raise InvalidInput(f"taxonomy '{self.name}' must have 2..255 classes, got {n}")
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
    def palette(self) -> np.ndarray:
        """uint8 (classes, 3) RGB."""
        return np.array(self.colors, dtype=np.uint8)


OCC3D = Taxonomy(
    name="occ3d",
    names=(
        "others", "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian",
        "traffic_cone", "trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade",
        "vegetation", "free",
    ),
    colors=(
        (90, 90, 90), (112, 128, 144), (220, 20, 60), (255, 127, 80), (255, 158, 0), (233, 150, 70), (255, 61, 99),
        (0, 0, 230), (47, 79, 79), (255, 140, 0), (255, 99, 71), (0, 207, 191), (175, 0, 75), (75, 0, 75),
        (112, 180, 60), (222, 184, 135), (0, 175, 0), (255, 255, 255),
    ),
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
    names=(
        "empty", "car", "bicycle", "motorcycle", "truck", "other_vehicle", "person", "bicyclist", "motorcyclist",
        "road", "parking", "sidewalk", "other_ground", "building", "fence", "vegetation", "trunk", "terrain", "pole",
        "traffic_sign",
    ),
    colors=(
        (255, 255, 255), (100, 150, 245), (100, 230, 245), (30, 60, 150), (80, 30, 180), (100, 80, 250), (255, 30, 30),
        (255, 40, 200), (150, 30, 90), (255, 0, 255), (255, 150, 255), (75, 0, 75), (175, 0, 75), (255, 200, 0),
        (255, 120, 50), (0, 175, 0), (135, 60, 0), (150, 240, 80), (255, 240, 150), (255, 0, 0),
    ),
    free_id=0,
    dynamic_ids=frozenset({1, 2, 3, 4, 5, 6, 7, 8}),
    prompts=(
        ("sky",), ("car",), ("bicycle",), ("motorcycle",), ("truck",), ("bus", "trailer", "train"), ("person",),
        ("cyclist",), ("motorcyclist",), ("road",), ("parking lot",), ("sidewalk",), (), ("building",), ("fence",),
        ("tree", "bush"), ("tree trunk",), ("grass", "terrain"), ("pole",), ("traffic sign",),
    ),
    unlabeled_id=255,
)  # fmt: skip
"""SemanticKITTI semantic scene completion, empty = 0 and 19 classes; 255 = ignore."""

TAXONOMIES = {taxonomy.name: taxonomy for taxonomy in (OCC3D, SEMANTIC_KITTI)}
