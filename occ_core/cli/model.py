"""`occ train | predict | eval | export`: from labels to a model, its answers, their score, and a file to deploy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

VERSION = Annotated[
    str | None, typer.Option(help="Table folder of nuScenes layout, such as v1.0-mini; default: the only one there is.")
]


def train(
    config: Annotated[Path, typer.Argument(help="YAML file, such as config/easyocc_nano.yaml.")],
    data: Annotated[
        list[Path] | None, typer.Option(help="Data set: nuScenes layout, ROS 2 bag or SemanticKITTI; may be repeated.")
    ] = None,
    validation: Annotated[
        list[Path] | None, typer.Option(help="Data set held out for validation; default: last scenes of --data.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Folder of labels in each data set, or a path; `voxels`: SemanticKITTI's. Default: gts."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and log.")] = Path("runs/train"),
    cache: Annotated[
        Path | None, typer.Option(help="Folder for decoded data and teachers' maps. Default: in the user's cache.")
    ] = None,
    version: VERSION = None,
    validation_labels: Annotated[
        str | None, typer.Option(help="Folder of labels to score with, where --labels are pseudo-labels.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Who gives class maps and depth to losses on pixels, such as `realistic`.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read data, instead of the config's.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps of all phases together, shared as the config has them.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads, instead of the config's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT/last.safetensors.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that OUT holds.")] = False,
    camera: Annotated[list[str] | None, typer.Option(help="Of bags: camera to use, by name or topic; repeat.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Of bags: camera to leave out; repeat.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Of bags: stop at the first problem.")] = False,
) -> None:
    """Train a model of any kind: on labels in Occ3D format, on the images themselves, or on both.

    Data is what its content says: a folder in nuScenes layout, a ROS 2 bag (folder, .mcap or .db3) or a folder of
    SemanticKITTI (`sequences/`).

    Writes OUT/model.safetensors with a json beside it (what the model is and how it was trained), OUT/last.safetensors
    to resume from, and OUT/log.csv. Ctrl-C saves first. A folder that holds a run is refused, unless --resume goes on
    with it or --overwrite removes it. Example:

        occ train config/easyocc_nano.yaml --data city --out runs/nano

    On several GPUs (see docs/training.md):

        torchrun --nproc-per-node 8 -m occ_core.cli.main train config/easyocc_base.yaml --data city --out runs/base
    """
    from occ_core.errors import need

    need("torch", "torch")
    from occ_core.training.config import load_config, with_steps
    from occ_core.training.loop import train as run
    from occ_core.training.state import recorded_steps

    settings = load_config(
        config,
        data=data or None,
        validation=validation or None,
        labels=labels,
        validation_labels=validation_labels,
        teacher=teacher,
        version=version,
        cache=cache,
        workers=workers,
        threads=threads,
        cameras=tuple(camera or ()) or None,
        exclude=tuple(exclude or ()) or None,
        strict=strict or None,
    )
    if steps is not None:
        settings = with_steps(settings, steps, recorded_steps(out) if resume else None)
    try:
        path = run(settings, out, resume, overwrite)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":  # torchrun starts several
        typer.echo(f"wrote {path}")


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Model: .safetensors (with its json) or .onnx.")],
    dataroot: Annotated[Path, typer.Argument(help="Data set in nuScenes layout, ROS 2 bag or SemanticKITTI.")],
    out: Annotated[Path, typer.Argument(help="Folder for one <token>.npz a frame (key: pred).")],
    scene: Annotated[list[str] | None, typer.Option(help="Only this scene; may be repeated.")] = None,
    version: VERSION = None,
    backend: Annotated[
        str, typer.Option(help="auto (fastest installed), torch, torch-compiled, onnxruntime, openvino or tensorrt.")
    ] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    alone: Annotated[
        bool, typer.Option("--alone", help="A model with memory: each frame as if it were the first.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make all anew; other models' go from OUT.")] = False,
    camera: Annotated[list[str] | None, typer.Option(help="Of a bag: camera to use, by name or topic; repeat.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Of a bag: camera to leave out; repeat.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Of a bag: stop at the first problem.")] = False,
) -> None:
    """Predict the voxels of every keyframe of a data set, or of every frame of a ROS 2 bag or of SemanticKITTI.

    A model with memory meets the frames of a scene in turn, those again that come before one that is missing in OUT.
    A file is named by the sample's token; of SemanticKITTI <scene>_<token>, and of a bag's frames that have no token
    <bag>_<stamp in ns>. Frames that OUT already holds are kept, so an interrupted run goes on; files
    of another model, of other images, or that do not say, are refused: choose another folder, or --overwrite. Examples:

        occ predict runs/nano/model.safetensors city predictions

        occ predict runs/nano/model.safetensors drive predictions
    """
    from rich.progress import track

    from occ_core.errors import InvalidInput
    from occ_core.frame import FULL_INTENSITY
    from occ_core.inference.predictions import MadeBy, lacking, model_key, remove_others, save_prediction
    from occ_core.inference.predictor import Predictor
    from occ_core.sources.open import Choice, frame_key, left_out, open_source

    predictor = Predictor.load(checkpoint, backend, threads)
    intensity_max = predictor.lidar.intensity_max if predictor.lidar else FULL_INTENSITY
    choice = Choice(tuple(camera or ()), tuple(exclude or ()), strict)
    source = open_source(dataroot, scene or None, intensity_max, version, choice)
    for line in left_out(source):
        typer.echo(f"left out: {line}", err=True)
    out.mkdir(parents=True, exist_ok=True)
    if alone:
        predictor.memory = None
    files = [out / f"{name}.npz" for name in source.names]
    model, reads_lidar = model_key(checkpoint, "alone" if alone else ""), predictor.lidar is not None

    def images(index: int) -> str:
        return frame_key(dataroot, source, index, reads_lidar)

    if overwrite and (removed := remove_others(out, model)):
        typer.echo(f"{removed} predictions of other models removed from {out}")
    missing = [True] * len(files) if overwrite else lacking(files, model, images)
    wanted = _until_the_last(missing, source.samples) if predictor.memory else missing
    cautions = set[str]()
    for i, path in enumerate(track(files, description="predicting")):
        if wanted[i]:
            sweeps = source.sweeps_before(i, predictor.lidar.sweeps) if predictor.lidar else None
            try:
                frame = source[i]
                answer = predictor.predict_frame(frame, sweeps)
            except InvalidInput as error:
                raise InvalidInput(f"{dataroot}, frame '{path.stem}': {error}") from error
            if (caution := predictor.caution(frame.rig)) and caution not in cautions:
                cautions.add(caution)
                typer.secho(f"warning: {caution}", err=True, fg=typer.colors.YELLOW)
            if missing[i]:
                save_prediction(path, answer.labels, answer.observed, MadeBy(model, images(i)))
    kept = len(files) - sum(missing)
    typer.echo(f"{len(files)} predictions in {out}" + (f", {kept} of them were there already" if kept else ""))


def _until_the_last(missing: list[bool], samples: list[tuple[str, str]]) -> list[bool]:
    """Frames to predict so that each missing one has met all of its scene before it."""
    last = {scene: i for i, (scene, _) in enumerate(samples) if missing[i]}
    return [i <= last.get(scene, -1) for i, (scene, _) in enumerate(samples)]


def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PRED",
            help="Folder of <token>.npz or .npy, <scene>/<token>/labels.npz or pred.npz, or SemanticKITTI's .label.",
        ),
    ],
    truths: Annotated[
        Path | None,
        typer.Argument(
            metavar="[GTS]", help="Folder of <scene>/<token>/labels.npz (Occ3D), or SemanticKITTI's voxels."
        ),
    ] = None,
    lidar: Annotated[
        Path | None,
        typer.Option(help="What was predicted, with a LiDAR: nuScenes layout, ROS 2 bag or SemanticKITTI."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="What was predicted, by a robot without LiDAR: do images of other moments agree?"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="What was predicted: LiDAR's poses for RayIoU, images for --html. Default: beside GTS."),
    ] = None,
    version: VERSION = None,
    json: Annotated[Path | None, typer.Option(help="Also write the scores to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with scores, voxels and images.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; pays from some hundred samples on.")] = 1,
) -> None:
    """Score predictions, or anybody's labels, against Occ3D ground truth in every protocol of the field, or a LiDAR.

    All numbers are percent, from counts over the whole set: `camera` counts the cells that a camera observes (Occ3D's
    official score), `camera_and_lidar` those that the LiDAR observes too, `full` all cells, and `ray` (RayIoU) rays of
    a virtual LiDAR, whose places --data tells. A class that occurs neither in truth nor in prediction is left out of
    the means. Where GTS holds SemanticKITTI's <frame>.label, it scores scene completion (`ssc`). Where there are no
    true voxels, --lidar tells how far from a real LiDAR's returns the first occupied cell on their rays is. Examples:

        occ eval predictions city/gts --json scores.json

        occ eval predictions --lidar drive --html report.html
    """
    from occ_core.cli.eval_page import moments_of_eval, write_eval_page
    from occ_core.errors import MissingInput
    from occ_core.evaluation.report import write_report

    if truths is None and lidar is None and images is None:
        raise MissingInput(
            "nothing to score against: give GTS, a folder of true voxels, --lidar DATA, --images DATA, or several"
        )
    if truths is None and data is not None and html is None:
        raise MissingInput("--data is for RayIoU, which needs true voxels: give GTS, too")
    moments = None if html is None else moments_of_eval(predictions, truths, data or lidar or images, version)
    rays = data is not None and html is None
    report = {} if truths is None else _against_voxels(predictions, truths, data, version, workers, rays)
    if lidar is not None:
        report |= {"lidar": _against_lidar(predictions, lidar, version, workers)}
    if lidar is not None and truths is not None:
        report |= {"lidar_of_truth": _against_lidar(truths, lidar, version, workers, predictions)}
    if images is not None:
        report |= {"images": _against_images(predictions, images, version)}
    if images is not None and truths is not None:
        typer.echo("The same of the true voxels: the ceiling")
        report |= {"images_of_truth": _against_images(truths, images, version)}
    if json is not None:
        write_report(json, report)
    if html is not None and moments is not None:
        write_eval_page(html, moments, report)


def _against_voxels(
    predictions: Path, truths: Path, data: Path | None, version: str | None, workers: int, need_rays: bool
) -> dict[str, Any]:
    """The report of every protocol that needs true voxels, printed; `need_rays`: it is an error if there are none."""
    from rich.console import Console
    from rich.progress import Progress

    from occ_core.errors import MissingPackage, OccError, need
    from occ_core.evaluation.predictions import prediction_files
    from occ_core.evaluation.ray_iou import ray_origins
    from occ_core.evaluation.report import evaluate_folders, table
    from occ_core.evaluation.ssc import evaluate_voxels, holds_voxels

    if holds_voxels(truths):
        ssc, samples = evaluate_voxels(predictions, truths)
        warnings = ssc.pop("warnings", [])
        for name, found in ssc.items():
            numbers = ", ".join(f"{key} {found[key]:.2f}" for key in ("precision", "recall", "iou", "miou_19"))
            typer.echo(f"{name:>5}: {numbers}")
        _say(warnings, samples)
        return {"ssc": ssc} | ({"warnings": warnings} if warnings else {})
    origins = no_rays = None
    with Progress(transient=True) as progress:
        task = progress.add_task("LiDAR poses", total=None)
        try:
            need("numba", "world")
            origins = ray_origins(data or truths.resolve().parent, prediction_files(predictions), version)
        except OccError as error:
            if need_rays:
                raise
            no_rays = error
        progress.update(task, description="scoring")
        report, samples = evaluate_folders(
            predictions,
            truths,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            origins_ego_m=origins,
            workers=workers,
        )
    Console().print(table(report))
    if no_rays is not None:
        hint = "" if isinstance(no_rays, MissingPackage) else "; --data DATAROOT names a data set that has LiDAR poses"
        typer.echo(f"no RayIoU: {no_rays}{hint}")
    _say(report.get("warnings", []), samples)
    return report


def _say(warnings: Sequence[str], samples: int) -> None:
    for line in warnings:
        typer.echo(f"warning: {line}")
    typer.echo(f"{samples} samples")


def _against_lidar(
    predictions: Path, data: Path, version: str | None, workers: int, like: Path | None = None
) -> dict[str, Any]:
    """The report of the LiDAR-ray score, printed; with `like`, of true voxels, the ceiling for those predictions."""
    from rich.console import Console
    from rich.progress import Progress

    from occ_core.evaluation.lidar_rays import score_lidar_rays
    from occ_core.evaluation.lidar_table import TITLE, class_table, lidar_table, summary

    with Progress(transient=True) as progress:
        task = progress.add_task("LiDAR rays", total=None)
        scores = score_lidar_rays(
            predictions,
            data,
            lambda done, total: progress.update(task, completed=done, total=total),
            workers,
            version,
            like,
        )
    console = Console()
    console.print(lidar_table(scores, TITLE if like is None else "The same of the true voxels: the ceiling"))
    if (classes := class_table(scores)) is not None:
        console.print(classes)
    for line in summary(scores) if like is None else ():
        typer.echo(line)
    return scores


def _against_images(predictions: Path, data: Path, version: str | None) -> dict[str, Any]:
    """The report of the images' consistency, printed."""
    from rich.progress import Progress

    from occ_core.evaluation.image_consistency import image_lines, score_images

    with Progress(transient=True) as progress:
        task = progress.add_task("images", total=None)
        scores = score_images(
            predictions, data, lambda done, total: progress.update(task, completed=done, total=total), version
        )
    for line in image_lines(scores):
        typer.echo(line)
    return scores


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Model, .safetensors with its json beside it.")],
    out: Annotated[Path, typer.Argument(help="File to write, .onnx.")],
    precision: Annotated[
        str, typer.Option(help="fp32; fp16 for GPUs; int8 for OpenVINO and GPUs, calibrated on --calibrate.")
    ] = "fp32",
    calibrate: Annotated[
        Path | None, typer.Option(help="ROS 2 bag or data set, of a robot like those that will run it.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of --calibrate, evenly spread.", min=1)] = 32,
    version: VERSION = None,
) -> None:
    """Export a checkpoint to ONNX, for deployment without torch.

    The file holds network, grid, class names and preprocessing; the table of the rig's calibration is an input, so one
    file serves every vehicle. Examples:

        occ export runs/nano/model.safetensors nano.onnx

        occ export runs/nano/model.safetensors nano_int8.onnx --precision int8 --calibrate drive
    """
    from occ_core.inference.export import export_onnx

    typer.echo(f"wrote {export_onnx(checkpoint, out, precision, calibrate, frames, version)}")
