"""From a name on the command line to teachers that are ready to be asked."""

from __future__ import annotations

from pathlib import Path

from occ_core.errors import InvalidInput, need
from occ_core.sources.nuscenes_tables import root_of
from occ_core.taxonomy import Taxonomy
from occ_core.teachers.asked import AskedClasses, AskedDepth
from occ_core.teachers.base import ClassTeacher, DepthTeacher, Teachers
from occ_core.teachers.oracle import Oracle
from occ_core.teachers.realistic import Realistic

CLASS_TEACHERS = (
    "oracle",
    "realistic",
    "lidar",
    "grounded-sam",
    "the folder or hub name of a Mask2Former, OneFormer, SegFormer or EoMT",
    "thin:NAME, such a network with Grounded-SAM's thin classes on top",
)
DEPTH_TEACHERS = (
    "oracle",
    "realistic",
    "lidar",
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
    """The teachers of a name: `A` for both; `A+B` for classes by A, depth by B; `A+B+lidar`: B's set right by a LiDAR;
    `A+B+motion`: B's scaled by depth from motion.

    Args:
        name: such as `oracle`, `realistic`, `grounded-sam+metric3d`, `oracle+lidar`, `grounded-sam+metric3d+lidar` or
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
    dataroot = root_of(dataroot)
    first, _, rest = name.partition("+")
    second, completes, completed_by = rest.partition("+")
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


def _city_teacher(name: str, dataroot: Path, taxonomy: Taxonomy, seed: int) -> Oracle | Realistic | None:
    """Who knows the simulated city's truth, classes and depth alike; None: the name is another's."""
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

        return AskedClasses(load_grounded_sam(taxonomy, weights, device))
    network = name.removeprefix("thin:")
    if "/" in network or (weights is not None and (weights / network).is_dir()):
        from occ_core.teachers.closed_set import load_closed_set, load_with_thin

        if network == name:
            return AskedClasses(load_closed_set(network, taxonomy, weights, device))
        return AskedClasses(load_with_thin(network, taxonomy, weights, device))
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

        return AskedDepth(load_metric3d(weights, device))
    if "/" in name or (weights is not None and (weights / name).is_dir()):
        from occ_core.teachers.transformers_depth import load_transformers_depth

        return AskedDepth(load_transformers_depth(name, weights, device))
    known = ", ".join(DEPTH_TEACHERS)
    raise InvalidInput(f"'{name}' is no depth teacher; there are: {known}; and CLASSES+DEPTH+lidar completes DEPTH")
