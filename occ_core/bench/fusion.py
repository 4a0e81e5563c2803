"""Measures time and memory of Dual Mamba beside plain convolutions as the volume grows."""

from __future__ import annotations

import multiprocessing
import resource
import time
from typing import Any, Literal

import numpy as np
import torch

from occ_core.models.occle.fusion import DualFusion

SHAPES = ((64, 64, 8), (128, 64, 8), (128, 128, 8), (128, 128, 16))  # 1, 2, 4, 8; the last one is SemanticKITTI's
MIXERS: tuple[Literal["mamba", "conv"], ...] = ("mamba", "conv")


def bench_fusion(
    volume_channels: int, channels: int, stages: int, heads: int, state: int, repeats: int, threads: int
) -> dict[str, Any]:
    """Forward and backward pass of the fusion of two random volumes of each of SHAPES, each in a process of its own.

    Args:
        volume_channels, channels, stages, heads, state: of `DualFusion`.
        repeats: passes that are timed, after one that is not; the median counts.
        threads: of the CPU.

    Returns:
        mamba, conv: rows with shape, cells, step_s (wall clock), step_cpu_s, memory_mb: the peak above what the process
        had before there were volumes, or of the GPU; and parameters of each.
    """
    sizes = volume_channels, channels, stages, heads, state
    spawn = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {"device": _device().type, "threads": threads}
    figures |= dict(zip(("volume_channels", "channels", "stages", "heads", "state"), sizes, strict=True))
    for mixer in MIXERS:
        rows = []
        for shape in SHAPES:
            with spawn.Pool(1) as pool:  # the peak of a process never falls
                rows.append(pool.apply(_measure, (mixer, sizes, shape, repeats, threads)))
        figures[mixer] = rows
    return figures


def _measure(
    mixer: Literal["mamba", "conv"], sizes: tuple[int, ...], shape: tuple[int, int, int], repeats: int, threads: int
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = _device()
    volume_channels, channels, stages, heads, state = sizes
    fusion = DualFusion(mixer, volume_channels, channels, stages, heads, state).to(device)
    before_mb = _peak_mb(device)
    volumes = [torch.randn(1, volume_channels, *shape, device=device, requires_grad=True) for _ in range(2)]
    seconds, cpu_seconds = [], []
    for _ in range(1 + repeats):
        began, cpu_began = time.perf_counter(), time.process_time()
        what, where = fusion(*volumes)
        (what.square().mean() + where.square().mean()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    return {
        "shape": list(shape),
        "cells": int(np.prod(shape)),
        "parameters": sum(p.numel() for p in fusion.parameters()),
        "step_s": float(np.median(seconds[1:])),
        "step_cpu_s": float(np.median(cpu_seconds[1:])),
        "memory_mb": _peak_mb(device) - before_mb,
    }


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
