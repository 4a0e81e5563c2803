"""Measures whether a network fits this machine: one training step and one answer on a real keyframe, with time and peak
memory.

Where nobody labelled the data, a sweep's points stand in as labels, and all that is seen is called one class: it costs
what real labels cost, and teaches nothing worth keeping.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from occ_core.errors import InvalidInput
from occ_core.frame import Frame
from occ_core.labels.recipes import PRESETS
from occ_core.labels.scene import label_scene
from occ_core.models.config import CameraModelConfig
from occ_core.sources.open import open_source
from occ_core.taxonomy import UNLABELED, Taxonomy
from occ_core.teachers.base import ClassMap, Teachers
from occ_core.teachers.lidar import LidarDepth
from occ_core.training.config import TrainingConfig
from occ_core.training.counts import cell_weights
from occ_core.training.data_sets import needs_of
from occ_core.training.keyframes import Keyframe, KeyframeSource
from occ_core.training.loop import DTYPES
from occ_core.training.samples import Sample, SampleDataset, collate
from occ_core.training.state import new_state

ANSWERS = 3  # timed


class OneClass:
    """Calls every pixel the taxonomy's first class that counts."""

    version = "one-class-1"

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.class_id = next(i for i in taxonomy.occupied_ids if i not in taxonomy.ignored_ids)

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        """Maps of the images' size."""
        shapes = {name: image.shape[:2] for name, image in frame.images.items()}
        full = np.uint8(self.class_id)
        return {name: ClassMap(np.full(at, full), np.ones(at, np.float32)) for name, at in shapes.items()}


def bench_step(
    config: TrainingConfig, dataroot: Path, steps: int = 1, on_progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Train `steps` steps on the keyframe in the middle of a data set, as often as `batch_size`, then answer it once.

    In the config's precision, the answer too. The first of several steps, which sets things up, does not count; the
    answer is measured ANSWERS times.

    Args:
        config: of a camera network; its data, labels and teacher are not read.
        dataroot: nuScenes layout, SemanticKITTI or a bag; with LiDAR if the losses need labels.
        on_progress: is given a line a step.

    Returns:
        model, input, precision, batch_size, parameters (millions), losses of the last step; step_s and step_cpu_s
        (forward, backward and optimiser; median), samples_per_s of training, answer_s (of one sample; median);
        occupied: cells that the answer calls so; peak_memory_mb: of the process, and
        of it before_mb: libraries and data, before there was a network.

    Raises:
        InvalidInput: EasyOcc nano, whose cost is in benchmarks/node.md; or what the losses need is not there.
    """
    if config.model.by_table:
        raise InvalidInput("this measures camera networks; EasyOcc nano trains by tables, see benchmarks/nano.md")
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    if config.precision == "fp16" and device.type == "cpu":
        raise InvalidInput("precision 'fp16' needs device 'cuda'; on the CPU use 'fp32' or 'bf16'")
    autocast = partial(torch.autocast, device.type, DTYPES[config.precision], enabled=config.precision != "fp32")
    sample = one_batch(config, dataroot).to(device)
    before_mb = _peak_memory_mb(device)
    state = new_state(config, device)
    network = cast(Any, state.model).train()
    teacher = (state.average,) if cast(CameraModelConfig, config.model).mean_teacher else ()
    seconds, cpu_seconds, values = [], [], {}
    for step in range(steps):
        began, cpu_began = time.perf_counter(), time.process_time()
        state.optimizer.zero_grad(set_to_none=True)
        with autocast():
            losses = network(sample.rig_images, sample.targets, 0.0, *teacher)
        state.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        values = {name: loss.item() for name, loss in losses.items()}  # waits for a GPU, too
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
        on_progress(f"step {step + 1}: {seconds[-1]:.1f} s, {', '.join(f'{k} {v:.3f}' for k, v in values.items())}")
    network.eval()
    one, answer_seconds = sample.rig_images.first(), []
    for _ in range(ANSWERS):
        began = time.perf_counter()
        with torch.inference_mode(), autocast():
            labels = network.answer(one).labels.cpu().numpy()
        answer_seconds.append(time.perf_counter() - began)
    step_s = float(np.median(seconds[1:] or seconds))
    return {
        "model": config.model.name,
        "input": [config.model.input_width, config.model.input_height],
        "device": str(device),
        "threads": config.threads,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
        "losses": values,
        "step_s": step_s,
        "step_cpu_s": float(np.median(cpu_seconds[1:] or cpu_seconds)),
        "samples_per_s": config.batch_size / step_s,
        "answer_s": float(np.median(answer_seconds)),
        "occupied": int((labels != config.model.classes.free_id).sum()),
        "before_mb": before_mb,
        "peak_memory_mb": _peak_memory_mb(device),
    }


def one_batch(config: TrainingConfig, dataroot: Path) -> Sample:
    """Make a batch of the middle keyframe, `batch_size` times, with all that the losses need."""
    model = cast(CameraModelConfig, config.model)
    taxonomy, frames = model.classes, open_source(dataroot)
    frame_index = len(frames) // 2
    keyframe = Keyframe(*frames.samples[frame_index], frame_index)
    teachers = Teachers(OneClass(taxonomy), LidarDepth())
    needs = needs_of(config.model_copy(update={"teacher": "lidar"}))
    if needs & {"labels", "depth_m"} and frames[frame_index].lidar is None:
        raise InvalidInput(f"{dataroot}: keyframe {keyframe.token} has no LiDAR sweep to make labels from")
    source = KeyframeSource(frames, [keyframe], None, teachers)
    sample = collate([SampleDataset([source], model, needs - {"labels"})[0, 0]] * config.batch_size)
    ones = torch.ones(len(taxonomy))
    targets = replace(sample.targets, class_weights=ones, pixel_weights=ones)
    if "labels" in needs:
        (label,) = label_scene([frames[frame_index]], teachers, PRESETS["lidar"], grid=model.grid, taxonomy=taxonomy)
        cells = np.where(label.occupancy.observed, label.occupancy.labels, np.uint8(UNLABELED))
        counts = torch.from_numpy(np.bincount(cells.ravel(), minlength=256)[: len(taxonomy)])
        labels = torch.from_numpy(cells).repeat(config.batch_size, 1, 1, 1)
        targets = replace(targets, labels=labels, class_weights=cell_weights(counts, taxonomy.free_id))
    return Sample(sample.rig_images, targets)


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
