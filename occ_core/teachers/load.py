"""Loads teachers by their names on the command line."""

from __future__ import annotations

from pathlib import Path

from occ_core.errors import InvalidInput, MissingInput, need
from occ_core.sources.nuscenes_tables import root_of
from occ_core.taxonomy import Taxonomy
from occ_core.teachers.base import ClassTeacher, DepthTeacher, Teachers
from occ_core.teachers.guarded import GuardedClasses, GuardedDepth
from occ_core.teachers.names import parts_of
from occ_core.teachers.oracle import Oracle
from occ_core.teachers.realistic import Realistic

CLASS_TEACHERS = (
    "oracle",
    "realistic",
    "lidar",
    "files:DIR",
    "grounded-sam",
    "the folder or hub name of a Mask2Former, OneFormer, SegFormer or EoMT",
    "thin:NAME, such a network with Grounded-SAM's thin classes on top",
)
DEPTH_TEACHERS = (
    "oracle",
    "realistic",
    "lidar",
    "files:DIR",
    "motion",
    "metric3d",
    "or the folder or hub name of a transformers depth model",
)


def load_teachers(
    name: str,
    dataroot: Path,
    taxonomy: Taxonomy,
    weights: Path | None = None,
    device: str | None = None,
    seed: int = 0,
    cache: Path | None = None,
) -> Teachers:
    """Load the teachers of a name: `A` for both; `A+B` for classes by A, depth by B; `A+B+lidar`: B's depth corrected
    by a LiDAR; `A+B+motion`: B's depth scaled by depth from motion.

    Args:
        name: such as `oracle`, `realistic`, `grounded-sam+metric3d`, `oracle+lidar`, `grounded-sam+metric3d+lidar`,
            `files:maps`, `files:maps+lidar` or
            `grounded-sam+depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf`.
        dataroot: the data set; where oracle and LiDAR teachers find what they know.
        taxonomy: classes to speak in.
        weights: folder with the networks' weights, see docs/teachers.md; None: the hub's cache.
        device: of the networks, such as `cuda:0`; None: a GPU where there is one.
        seed: of the errors of `realistic`.
        cache: folder to keep the maps in; None: every map is made anew.

    Raises:
        InvalidInput: a name that is no teacher.
        MissingInput, MissingPackage: what the teacher needs is not there.
    """
    require_weights(name, weights)
    dataroot = root_of(dataroot)
    first, *others = parts_of(name)
    second, completes, completed_by = "".join(others[:1]), len(others) > 1, "+".join(others[1:])
    if completes and completed_by not in ("lidar", "motion"):
        raise InvalidInput(
            f"'{name}': depth can be completed by 'lidar' (CLASSES+DEPTH+lidar) or scaled by 'motion', not by "
            f"'{completed_by}'"
        )
    if completes and second in ("", "lidar", "motion"):
        raise InvalidInput(f"'{name}': '{second}' has no dense depth that a LiDAR or motion could complete")
    both = _city_teacher(first, dataroot, taxonomy, seed) if second in ("", first) else None  # reads each file once
    classes: ClassTeacher = both or _class_teacher(first, dataroot, taxonomy, weights, device, seed)
    depth: DepthTeacher = both or _depth_teacher(second or first, dataroot, taxonomy, weights, device, seed)
    if cache is not None:
        from occ_core.teachers.cache import CachedClasses, CachedDepth

        classes, depth = CachedClasses(classes, cache), CachedDepth(depth, cache)
    if completes:
        from occ_core.teachers.completed import CompletedDepth

        measures = _depth_teacher(completed_by, dataroot, taxonomy, weights, device, seed)
        depth = CompletedDepth(depth, measures, exact=completed_by == "lidar")
        depth = depth if cache is None else CachedDepth(depth, cache)
    return Teachers(classes, depth)


def load_parts(
    name: str,
    dataroot: Path,
    taxonomy: Taxonomy,
    weights: Path | None = None,
    device: str | None = None,
    seed: int = 0,
) -> tuple[ClassTeacher | None, DepthTeacher | None]:
    """Like `load_teachers`, but for a name without `+` that knows only classes or only depth, the other is None.

    Raises:
        As of `load_teachers`.
    """
    if len(parts_of(name)) > 1 or _city_teacher(name, root_of(dataroot), taxonomy, seed):
        teachers = load_teachers(name, dataroot, taxonomy, weights, device, seed)
        return teachers.classes, teachers.depth
    classes: ClassTeacher | None
    require_weights(name, weights)
    given = root_of(dataroot), taxonomy, weights, device, seed
    if name.startswith("files:"):
        from occ_core.teachers.map_files import kinds_in

        kinds = kinds_in(name.removeprefix("files:"))
        classes = _class_teacher(name, *given) if "classes" in kinds else None
        return classes, _depth_teacher(name, *given) if "depth" in kinds else None
    try:
        classes = _class_teacher(name, *given)
    except InvalidInput as no_classes:
        try:
            return None, _depth_teacher(name, *given)
        except InvalidInput as no_depth:
            raise InvalidInput(f"{no_classes}; {no_depth}") from no_depth
    return classes, _depth_teacher(name, *given) if name == "lidar" else None


def require_weights(name: str, weights: Path | None) -> None:
    """Check for everything that the networks of a teacher's name need, before any is loaded, which may take minutes.

    Raises:
        MissingInput: naming each, and how to get it.
    """
    absent: list[str] = []
    for part in dict.fromkeys(parts_of(name.replace("thin:", "grounded-sam+"))):
        if part == "grounded-sam":
            from occ_core.teachers import grounded_sam

            absent += grounded_sam.lacking(weights)
        elif part == "metric3d":
            from occ_core.teachers import metric3d

            absent += metric3d.lacking(weights)
        elif "/" in part and not part.startswith("files:") and not (weights is not None and (weights / part).is_dir()):
            from occ_core.teachers import networks

            absent += networks.lacking(part)
    if absent:
        raise MissingInput("; ".join(absent))


def _city_teacher(name: str, dataroot: Path, taxonomy: Taxonomy, seed: int) -> Oracle | Realistic | None:
    """The teacher that knows the simulated city's classes and depth; None if the name is another's."""
    if name == "oracle":
        return Oracle(dataroot, taxonomy)
    if name == "realistic":
        return Realistic(dataroot, taxonomy, seed=seed)
    return None


def _class_teacher(
    name: str, dataroot: Path, taxonomy: Taxonomy, weights: Path | None, device: str | None, seed: int
) -> ClassTeacher:
    if city := _city_teacher(name, dataroot, taxonomy, seed):
        return city
    if name == "lidar":
        from occ_core.teachers.lidar import LidarClasses

        return LidarClasses(dataroot, taxonomy)
    if name == "grounded-sam":
        from occ_core.teachers.grounded_sam import load_grounded_sam

        return GuardedClasses(load_grounded_sam(taxonomy, weights, device))
    if name.startswith("files:"):
        from occ_core.teachers.files import FileClasses

        return FileClasses(name.removeprefix("files:"), taxonomy)
    network = name.removeprefix("thin:")
    if "/" in network or (weights is not None and (weights / network).is_dir()):
        from occ_core.teachers.closed_set import load_closed_set, load_with_thin

        if network == name:
            return GuardedClasses(load_closed_set(network, taxonomy, weights, device))
        return GuardedClasses(load_with_thin(network, taxonomy, weights, device))
    raise InvalidInput(f"'{name}' is no class teacher; there are: {', '.join(CLASS_TEACHERS)}")


def _depth_teacher(
    name: str, dataroot: Path, taxonomy: Taxonomy, weights: Path | None, device: str | None, seed: int
) -> DepthTeacher:
    if city := _city_teacher(name, dataroot, taxonomy, seed):
        return city
    if name == "lidar":
        from occ_core.teachers.lidar import LidarDepth

        return LidarDepth()
    if name == "motion":
        need("numba", "world")
        from occ_core.teachers.motion import MotionDepth

        return MotionDepth(dataroot)
    if name == "metric3d":
        from occ_core.teachers.metric3d import load_metric3d

        return GuardedDepth(load_metric3d(weights, device))
    if name.startswith("files:"):
        from occ_core.teachers.files import FileDepth

        return FileDepth(name.removeprefix("files:"))
    if "/" in name or (weights is not None and (weights / name).is_dir()):
        from occ_core.teachers.transformers_depth import load_transformers_depth

        return GuardedDepth(load_transformers_depth(name, weights, device))
    known = ", ".join(DEPTH_TEACHERS)
    raise InvalidInput(f"'{name}' is no depth teacher; there are: {known}; and CLASSES+DEPTH+lidar completes DEPTH")
