"""The settings of label making: a frozen model, seven presets, or a YAML file of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from occ_core.errors import InvalidInput, MissingInput
from occ_core.taxonomy import TAXONOMIES

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Metres = Annotated[float, Field(ge=0, le=1000)]

RARE_NEAR_GROUND = ("barrier", "bicycle", "motorcycle", "pedestrian", "traffic_cone", "person", "bicyclist",
                    "motorcyclist", "pole", "traffic_sign", "trunk")  # fmt: skip


class Recipe(BaseModel):
    """How maps become a label. By default every pixel is used once and nothing is filtered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # window: how many frames before and after the labelled one; None = all of the scene
    past: Count | None = 0
    future: Count | None = 0
    # lift: which pixels become points
    max_depth_m: Metres = 300.0  # along the optical axis; beyond it a pixel only says what its ray passed
    min_score: Share = 0.0  # of the class; below it the class is unknown and the pixel gives no point
    min_confidence: Share = 0.0  # of the depth; below it the pixel is dropped
    edge_cut: Annotated[float, Field(gt=0)] | None = None  # relative jump in inverse depth that makes an edge
    ground_z_m: float | None = None  # height of the road in the ego frame, to correct each image's depth by
    ground_reach: Share = (
        0.0  # how far around a road pixel its error holds, of the image's width; 0: one factor an image
    )
    measured_share: Share = 0.0  # pixels of confidence 1 are no edge; they and their rays count as this share of all
    surface_offset_m: Metres = 0.0  # a point is this far behind the measured surface, along its ray
    fill_ground: Share = 0.0  # relative step in depth between rows of ground pixels up to which the gap is filled
    outlier_points: Count = 0  # a point with fewer in the 27 cells around it, of its own frame, is dropped
    clamp: bool = False  # the published artefact: points out of the grid are moved onto its faces
    # rays: which cells they pass
    sky: bool = False  # sky pixels pass through the whole grid
    free_margin: Share = 0.0  # a ray passes nothing on the last part of its length, this share of the depth
    grazing_share: Share | None = None  # in one frame, a cell with this share of hits per pass was hit, not passed
    # fusion: what a cell is
    moving: Literal["own", "checked"] = "own"  # moving classes: of the own frame only, or of all frames, filtered
    min_points: Annotated[int, Field(ge=1)] = 1
    min_hit_share: Share = 0.0  # hits / (hits + passes) of an occupied cell
    free_hit_share: Share = 1.0  # at most this in a free cell; between the two it is undecided
    priority: tuple[str, ...] = ()  # classes that win with less than the majority
    priority_share: Share = 0.5  # of a cell's points, for a class of `priority` to win

    @field_validator("priority")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = {name for taxonomy in TAXONOMIES.values() for name in taxonomy.names}
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"no taxonomy has class '{unknown[0]}'")
        return names


_EASYOCC = Recipe(past=13, outlier_points=3)
_BEST = Recipe(
    past=13, future=13, max_depth_m=50.0, edge_cut=0.4, ground_z_m=0.0, ground_reach=0.1, surface_offset_m=0.1,
    fill_ground=0.12, outlier_points=3, sky=True, free_margin=0.15, grazing_share=0.05, moving="checked",
    min_points=2, min_hit_share=0.1, free_hit_share=0.05, priority=RARE_NEAR_GROUND, priority_share=0.33,
)  # fmt: skip

PRESETS: dict[str, Recipe] = {
    # One frame: the floor that time must beat.
    "single": _EASYOCC.model_copy(update={"past": 0}),
    # Hayes et al., "EasyOcc" (arXiv 2509.26087): 13 past keyframes, moving classes of other frames removed, outliers
    # removed. The paper names no depth cut-off, no free-space filter and no vote; majority is ours.
    "easyocc": _EASYOCC,
    # The same with what its figure shows: coloured walls on the faces of the grid.
    "easyocc-clamped": _EASYOCC.model_copy(update={"clamp": True}),
    # ShelfOcc: static frames of the whole scene, hit/pass filter, at least 4 points, priority for rare classes.
    "shelf": Recipe(
        past=None, future=None, max_depth_m=50.0, sky=True, grazing_share=0.05, min_points=4, min_hit_share=0.2,
        priority=RARE_NEAR_GROUND, priority_share=0.25,
    ),
    # Ours: before and after, each image's depth set right by the road it shows, moving classes kept where no ray
    # contradicts (parked cars), rays trusted only up to 85 % of their length.
    "best": _BEST,
    # `best` for a depth teacher that measures: no scale error to correct, one return is a surface, where it says. What
    # hides behind something nearer (LidarDepth's confidence 0.2) is left out: the camera's rays to it would pass
    # through that.
    "lidar": _BEST.model_copy(update={
        "ground_z_m": None, "ground_reach": 0.0, "surface_offset_m": 0.0, "min_confidence": 0.5, "min_points": 1,
        "outlier_points": 0,
    }),
    # `best` for a depth teacher that is dense and right (CompletedDepth): no scale error to correct, a ray is trusted
    # almost to its end, and a surface must be hit a little oftener. What errs yet is the run from near to far at edges:
    # a finer cut, but for the returns, each of which counts as some forty pixels of 270 x 480.
    "completed": _BEST.model_copy(update={
        "ground_z_m": None, "ground_reach": 0.0, "edge_cut": 0.1, "fill_ground": 0.2, "free_margin": 0.02,
        "min_hit_share": 0.15, "measured_share": 3e-4,
    }),
}  # fmt: skip


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Load a preset by its name, or a recipe from a YAML file (fields of `Recipe`, all optional).

    Raises:
        MissingInput: neither a preset nor a file.
        InvalidInput: one line that names the first wrong field.
    """
    if str(name_or_path) in PRESETS:
        return PRESETS[str(name_or_path)]
    path = Path(name_or_path)
    if not path.is_file():
        raise MissingInput(f"'{name_or_path}' is no recipe file and none of the presets: {', '.join(PRESETS)}")
    try:
        record = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"{path}: must be a mapping of field to value, is a {type(record).__name__}")
    try:
        return Recipe(**record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{path}: {where}: {first['msg']}, got {first['input']!r:.80}") from error
