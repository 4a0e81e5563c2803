"""Labels and what they come from: images, the teachers' maps, votes, and what nobody saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from occ_core.errors import MissingInput
from occ_core.frame import Frame
from occ_core.labels.scene import taught_frame
from occ_core.labels.store import LabelStore, StoredLabel
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.show.album import write_album
from occ_core.show.maps import color_classes, color_depth, over_image
from occ_core.show.pictures import camera_rows, captioned, from_above, legend, mosaic, strip
from occ_core.show.recording import RerunRecording as Stream
from occ_core.show.solids import in_perspective
from occ_core.sources.scenes import Recording, SceneFrames
from occ_core.taxonomy import UNLABELED
from occ_core.teachers.base import Teachers

WIDTH = 1440


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """One labelled keyframe. `classes`, `depths`: maps laid over the images, by camera; empty without teachers."""

    frame: Frame
    label: StoredLabel
    truth: Occupancy | None
    classes: dict[str, np.ndarray]
    depths: dict[str, np.ndarray]


def show_labels(
    store: LabelStore,
    dataroot: Path,
    out: Path,
    scenes: Sequence[str] | None = None,
    pictures: int = 4,
    recording: bool = True,
    teachers: Teachers | None = None,
    version: str | None = None,
) -> list[Path]:
    """Write `out/pictures/<scene>_<n>.png` and `out/recording.rrd`.

    Args:
        store: labels of keyframes of `dataroot`, any recording; its `gts/` is shown beside them where it is there.
        pictures: at most this many, spread evenly over the labels.
        teachers: asked for the maps to show; None: only images are shown.
        version: table folder, as of NuScenesTables.

    Returns:
        paths of what was written.

    Raises:
        MissingInput: no label is there.
    """
    source = Recording(dataroot, version)
    chosen, labelled = source.require_scenes(scenes), list[tuple[SceneFrames, int]]()
    for scene in (name for name in chosen if name in store.record["scenes"]):
        frames = source.scene(scene)
        tokens = enumerate(frames.tokens)
        labelled += [(frames, index) for index, token in tokens if store.path(scene, token).is_file()]
    if not labelled:
        raise MissingInput(f"{store.folder}: no label of any keyframe of the {len(chosen)} scenes of {dataroot}")

    def labelled_frame(number: int) -> LabelledFrame:
        frames, index = labelled[number]
        return _labelled_frame(source, frames[index], store, teachers)

    def draw(number: int) -> tuple[str, np.ndarray]:
        shown = labelled_frame(number)
        return shown.frame.scene, sheet(shown, _title(store, shown.frame))

    def record(stream: Stream, number: int) -> None:
        _record(stream, labelled_frame(number))

    return write_album(out, "labels", range(len(labelled)), pictures, draw, record if recording else None)


def _title(store: LabelStore, frame: Frame) -> str:
    made_with = store.record["made_with"]
    skipped = len(store.skipped(frame.scene, frame.token))
    left_out = f", {skipped} left out" if skipped else ""
    return f"{frame.scene}, sample {frame.token[:8]}: {made_with['teacher']}, recipe {made_with['recipe']}{left_out}"


def _labelled_frame(source: Recording, frame: Frame, store: LabelStore, teachers: Teachers | None) -> LabelledFrame:
    path = source.truth_path(frame.scene, frame.token)
    truth = load_occ3d(path) if path is not None and path.is_file() else None
    classes, depths = {}, {}
    if teachers is not None:
        taught = taught_frame(frame)
        for name, found in teachers.classes.classes(taught).items():
            colors = color_classes(found.class_id, store.taxonomy)
            classes[name] = over_image(taught.images[name], colors, found.class_id != UNLABELED)
        for name, measured in teachers.depth.depth(taught).items():
            colors, known = color_depth(measured.depth_m), ~np.isnan(measured.depth_m)
            depths[name] = over_image(taught.images[name], colors, known)
    return LabelledFrame(frame, store.read(frame.scene, frame.token), truth, classes, depths)


def sheet(labelled_frame: LabelledFrame, title: str) -> np.ndarray:
    """One picture: images, class maps and depths, voxels (label and truth), and from above what was voted and seen."""
    rows = camera_rows(sorted(labelled_frame.frame.images))
    parts = [strip(title, WIDTH), mosaic(labelled_frame.frame.images, rows, _tile(WIDTH // len(rows[0])))]
    if labelled_frame.classes or labelled_frame.depths:
        rows = camera_rows(sorted(labelled_frame.classes | labelled_frame.depths))  # of a fisheye, its views
        small = _tile(WIDTH // (2 * len(rows[0])))
        parts.append(
            np.concatenate(
                [mosaic(labelled_frame.classes, rows, small), mosaic(labelled_frame.depths, rows, small)], axis=1
            )
        )
    label = labelled_frame.label.occupancy
    voxels = {"label": label} | ({} if labelled_frame.truth is None else {"truth": labelled_frame.truth})
    size = (WIDTH // len(voxels), 480)
    parts.append(
        np.concatenate(
            [
                captioned(in_perspective(v, size, with_hidden=v is labelled_frame.truth), name)
                for name, v in voxels.items()
            ],
            axis=1,
        )
    )
    above = {f"{name} from above": from_above(v) for name, v in voxels.items()} | _facts(labelled_frame.label)
    side = WIDTH // len(above)
    panels = [captioned(cv2.resize(i, (side, side), interpolation=cv2.INTER_AREA), n) for n, i in above.items()]
    parts += [np.concatenate(panels, axis=1), legend(label, WIDTH)]
    return np.concatenate([_padded(part) for part in parts])


def _tile(width: int) -> tuple[int, int]:
    return width, width * 9 // 16


def _padded(part: np.ndarray) -> np.ndarray:
    return np.pad(part, ((0, 0), (0, WIDTH - part.shape[1]), (0, 0)), constant_values=250)


def _facts(label: StoredLabel) -> dict[str, np.ndarray]:
    """From above: most votes of a column's cells, in steps of doubling; and how much of it was seen."""
    facts = {}
    if label.votes is not None:
        most = label.votes.max(axis=2)
        shades = np.log2(1 + most) / 8  # 255 votes and more are as bright as it gets
        colors = cv2.applyColorMap((255 * np.minimum(shades, 1)).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[:, :, ::-1]
        facts["votes"] = np.where(most[:, :, None] > 0, colors, np.uint8(250))
    seen = label.occupancy.observed.mean(axis=2)
    facts["seen; black: nothing of the column"] = np.repeat((255 * seen).astype(np.uint8)[:, :, None], 3, axis=2)
    return {name: np.ascontiguousarray(image[::-1, ::-1]) for name, image in facts.items()}


def _record(stream: Stream, labelled_frame: LabelledFrame) -> None:
    stamp_ns, label = labelled_frame.frame.stamp_ns, labelled_frame.label.occupancy
    stream.log(stamp_ns, labelled_frame.frame.images, label, labelled_frame.truth)
    stream.log_images(stamp_ns, "classes", labelled_frame.classes)
    stream.log_images(stamp_ns, "depth", labelled_frame.depths)
    stream.log_images(
        stamp_ns, "from_above", {name.split(";")[0]: image for name, image in _facts(labelled_frame.label).items()}
    )
    stream.log_cells(stamp_ns, "edge_of_the_unseen", label.grid, edge_of_the_unseen(label.observed))


def edge_of_the_unseen(observed: np.ndarray) -> np.ndarray:
    """Unobserved cells, bool (X, Y, Z), that share a face with an observed one: all of them would hide the rest."""
    padded = np.pad(observed, 1)
    beside = np.zeros_like(observed)
    for axis in range(3):
        for step in (-1, 1):
            beside |= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return beside & ~observed
