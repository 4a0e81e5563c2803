"""Ego masks and labels of every stretch: who teaches, by which recipe, is said by what the recording has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from occ_core.adapt.cut import folders
from occ_core.adapt.doctor import Drive, recipe_for
from occ_core.ego_mask import FOLDER, scene_masks
from occ_core.errors import InvalidInput
from occ_core.labels.ego_finder import MaskFinder, write_found
from occ_core.labels.make import TeacherChoice, make_labels
from occ_core.labels.store import LabelStore
from occ_core.sources.scenes import Recording
from occ_core.teachers.names import is_network, processes_for

LABELS = "labels"
"""Folder of labels in each stretch."""


def give_masks(out: Path, drives: Sequence[Drive], on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Each stretch its ego masks: the bag's own, or else those that are found in what is learned from.

    Returns:
        what was found, one line a camera.
    """
    said: dict[str, Any] = {}
    for drive in drives:
        stretches = [folder for folder in folders(out, drive.scene).values() if folder.is_dir()]
        masks = scene_masks(drive.bag, drive.scene)
        if masks:
            said[drive.scene] = [f"{path.name}: the bag's own" for path in masks]
        else:
            finder, frames = MaskFinder(), Recording(stretches[0]).scene(drive.scene)
            for index in range(len(frames)):
                finder.add(frames[index])
                on_progress(index + 1, len(frames))
            said[drive.scene] = write_found(finder.found(), out / FOLDER / drive.scene)
            masks = sorted((out / FOLDER / drive.scene).glob("*.png"))
        for folder in stretches:
            (folder / FOLDER).mkdir(exist_ok=True)
            for path in masks:
                shutil.copyfile(path, folder / FOLDER / path.name)
    return said


def make_all(
    stretches: Sequence[Path], needed: int, teacher: str, maps: Path, weights: Path | None, device: str | None = None
) -> dict[str, Any]:
    """Label every stretch by itself; maps of networks are kept in `maps`, where labels of later tries find them.

    Args:
        needed: of `stretches`, how many, the first ones, are of no use without labels. The others only judge.

    Returns:
        how many labels there are by name of the stretch, and why some are not there.

    Raises:
        InvalidInput: one of those without any label. And what `make_labels` raises.
    """
    choice = TeacherChoice(teacher, weights, device, cache=maps if is_network(teacher) else None)
    counts: dict[str, int] = {}
    lacking: list[str] = []
    for number, stretch in enumerate(stretches):
        done = make_labels(
            stretch, stretch / LABELS, recipe_for(teacher)[1], choice, workers=processes_for(teacher, device)
        )
        lacking += [f"{stretch.name}: {scene.error}" for scene in done if scene.error]
        store = LabelStore(stretch / LABELS)
        counts[stretch.name] = sum(store.is_complete(*sample) for sample in store.samples)
        if not counts[stretch.name] and number < needed:
            raise InvalidInput(f"{stretch}: no label could be made: {lacking[-1] if lacking else 'no keyframe'}")
    return {"labels": counts, "lacking": lacking}
