"""Training from Python as from the command line: a config by name or path, data, and a folder to write to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from occ_core.training.config import load_config, with_steps
from occ_core.training.loop import train as run_config
from occ_core.training.state import recorded_steps


def train(
    config: Path | str,
    data: Path | str | Sequence[Path | str] = (),
    out: Path | str = "runs/train",
    *,
    steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Train a network of any kind, as `occ train` does.

    Args:
        config: YAML file, or the name of one that ships, such as `easyocc_nano` or `occnerf_small`.
        data: nuScenes layout, ROS 2 bags or SemanticKITTI; none: what the config names.
        out: folder of checkpoints and log.
        steps: of all phases together, which share them as in the config; None: the config's.
        resume: go on from OUT/last.safetensors.
        overwrite: remove the run that `out` holds, which is refused otherwise.
        settings: fields of `TrainingConfig` that win over the file, such as `labels`, `threads`, `validation_scenes`.

    Returns:
        the checkpoint, OUT/model.safetensors.

    Raises:
        InvalidInput, MissingInput, CorruptInput: as of `load_config` and of the loop.
        KeyboardInterrupt: after what was learned is saved.
    """
    out = Path(out)
    roots = (data,) if isinstance(data, Path | str) else tuple(data)
    run = load_config(config, data=roots or None, **settings)
    if steps is not None:
        run = with_steps(run, steps, recorded_steps(out) if resume else None)
    return run_config(run, out, resume, overwrite)
