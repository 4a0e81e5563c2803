"""Maps the classes of street data sets, in the order of their ids, to Occ3D's and SemanticKITTI's names.

The right column follows what each data set's own definitions say of borderline things: nuScenes counts riders to what
they ride, fences and poles to `manmade`, rail tracks and water to `other_flat`; SemanticKITTI counts small walls and
crash barriers to `fence`, curbs to `sidewalk`, and gives traffic lights none of its 19. None: the taxonomy has no class
for it, or none that is certain.
"""

from __future__ import annotations

from occ_core.errors import InvalidInput
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, Taxonomy

Pair = tuple[str | None, str | None]

NOTHING: Pair = (None, None)
ROAD, SIDEWALK, TERRAIN = ("driveable_surface", "road"), ("sidewalk", "sidewalk"), ("terrain", "terrain")
BUILDING, FENCE, POLE, SIGN = (
    ("manmade", "building"),
    ("manmade", "fence"),
    ("manmade", "pole"),
    ("manmade", "traffic_sign"),
)
THING: Pair = ("manmade", None)  # SemanticKITTI leaves other structures and objects out
GREEN, SKY, PERSON = ("vegetation", "vegetation"), ("free", "empty"), ("pedestrian", "person")
CAR, TRUCK, BUS, TRAIN = ("car", "car"), ("truck", "truck"), ("bus", "other_vehicle"), ("bus", "other_vehicle")
BICYCLE, MOTORCYCLE = ("bicycle", "bicycle"), ("motorcycle", "motorcycle")
CYCLIST = ("bicycle", "bicyclist")
FLAT = ("other_flat", "other_ground")

CITYSCAPES: dict[str, Pair] = {
    "road": ROAD, "sidewalk": SIDEWALK, "building": BUILDING, "wall": FENCE, "fence": FENCE, "pole": POLE,
    "traffic light": THING, "traffic sign": SIGN, "vegetation": GREEN, "terrain": TERRAIN, "sky": SKY, "person": PERSON,
    "rider": CYCLIST, "car": CAR, "truck": TRUCK, "bus": BUS, "train": TRAIN, "motorcycle": MOTORCYCLE,
    "bicycle": BICYCLE,
}  # fmt: skip
"""19 classes; most riders of Cityscapes sit on bicycles."""

MAPILLARY: dict[str, Pair] = {
    "bird": NOTHING, "ground animal": NOTHING, "curb": SIDEWALK, "fence": FENCE, "guard rail": FENCE,
    "barrier": ("barrier", "fence"), "wall": FENCE, "bike lane": ROAD, "crosswalk - plain": ROAD, "curb cut": SIDEWALK,
    "parking": ("driveable_surface", "parking"), "pedestrian area": SIDEWALK, "rail track": FLAT, "road": ROAD,
    "service lane": ROAD, "sidewalk": SIDEWALK, "bridge": THING, "building": BUILDING, "tunnel": THING,
    "person": PERSON, "bicyclist": CYCLIST, "motorcyclist": ("motorcycle", "motorcyclist"), "other rider": PERSON,
    "lane marking - crosswalk": ROAD, "lane marking - general": ROAD, "mountain": NOTHING, "sand": TERRAIN, "sky": SKY,
    "snow": NOTHING, "terrain": TERRAIN, "vegetation": GREEN, "water": FLAT, "banner": THING, "bench": THING,
    "bike rack": NOTHING, "billboard": THING, "catch basin": ROAD, "cctv camera": THING, "fire hydrant": THING,
    "junction box": THING, "mailbox": THING, "manhole": ROAD, "phone booth": THING, "pothole": ROAD,
    "street light": POLE, "pole": POLE, "traffic sign frame": POLE, "utility pole": POLE, "traffic light": THING,
    "traffic sign (back)": SIGN, "traffic sign (front)": SIGN, "trash can": THING, "bicycle": BICYCLE, "boat": NOTHING,
    "bus": BUS, "car": CAR, "caravan": ("trailer", "other_vehicle"), "motorcycle": MOTORCYCLE, "on rails": TRAIN,
    "other vehicle": ("construction_vehicle", "other_vehicle"), "trailer": ("trailer", "other_vehicle"), "truck": TRUCK,
    "wheeled slow": NOTHING, "car mount": NOTHING, "ego vehicle": NOTHING,
}  # fmt: skip
"""65 classes of Mapillary Vistas 1.2."""

ADE20K: dict[str, Pair] = {
    "wall": BUILDING, "building": BUILDING, "sky": SKY, "tree": GREEN, "road": ROAD, "windowpane": BUILDING,
    "grass": TERRAIN, "sidewalk": SIDEWALK, "person": PERSON, "earth": TERRAIN, "door": BUILDING, "plant": GREEN,
    "car": CAR, "house": BUILDING, "field": TERRAIN, "fence": FENCE, "rock": TERRAIN, "railing": FENCE,
    "column": THING, "signboard": SIGN, "sand": TERRAIN, "skyscraper": BUILDING, "path": SIDEWALK, "stairs": BUILDING,
    "runway": ROAD, "stairway": BUILDING, "river": FLAT, "bridge": THING, "flower": GREEN, "hill": TERRAIN,
    "bench": THING, "palm": GREEN, "hovel": BUILDING, "bus": BUS, "truck": TRUCK, "tower": BUILDING, "awning": BUILDING,
    "streetlight": POLE, "booth": THING, "dirt track": ROAD, "pole": POLE, "land": TERRAIN, "bannister": FENCE,
    "van": CAR, "canopy": THING, "ashcan": THING, "minibike": MOTORCYCLE, "bicycle": BICYCLE, "traffic light": THING,
    "sculpture": THING, "fountain": THING, "water": FLAT,
}  # fmt: skip
"""What of ADE20K's 150 classes stands in streets; the others say nothing."""

STREET = (ROAD, SIDEWALK, BUILDING, GREEN, SKY, PERSON, CAR)  # a network that cannot name one of these is no teacher


def classes_of(labels: list[str], taxonomy: Taxonomy) -> list[int | None]:
    """The taxonomy's class of each label of a network.

    Args:
        labels: its names in the order of its outputs; `LABEL_0`, ..., as a network without names has them, are those of
            the data set with as many classes.

    Raises:
        InvalidInput: another taxonomy, or a network of other data: it cannot name the seven classes of any street.
    """
    column = {OCC3D.name: 0, SEMANTIC_KITTI.name: 1}.get(taxonomy.name)
    if column is None:
        raise InvalidInput(f"there is no table from Cityscapes, Mapillary Vistas and ADE20K to '{taxonomy.name}'")
    # "building, edifice" and "bed ": names come with synonyms and blanks
    names = [label.split(",")[0].split(";")[0].strip().lower() for label in labels]
    tables = (CITYSCAPES, MAPILLARY, ADE20K)
    if all(name.startswith("label_") for name in names):
        names = next((list(t) for t in tables[:2] if len(t) == len(names)), names)
    table = max(tables, key=lambda each: sum(name in each for name in names))
    found = [table.get(name, NOTHING) for name in names]
    lacking = [street[0] for street in STREET if street not in found]
    if lacking:
        raise InvalidInput(
            f"a network of {len(labels)} classes ({', '.join(labels[:3])}, ...) cannot name {', '.join(lacking)}: "
            "its head must be of Cityscapes, Mapillary Vistas or ADE20K"
        )
    return [None if pair[column] is None else taxonomy.id_of(str(pair[column])) for pair in found]
