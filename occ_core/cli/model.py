"""`occ train | predict | eval | export`: from labels to a model, its answers, their score, and a file to deploy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

VERSION = Annotated[
    str | None, typer.Option(help="Table folder of nuScenes layout, such as v1.0-mini; default: the only one there is.")
]


def train(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of one that ships, such as easyocc_nano.")],
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
    to resume from, OUT/log.csv, and to look at: OUT/report.html, loss.png and pictures. Ctrl-C saves first. A folder
    that holds a run is refused, unless --resume goes on with it or --overwrite removes it. Example:

        occ train easyocc_nano --data city --out runs/nano

    On several GPUs (see docs/training.md):

        torchrun --nproc-per-node 8 -m occ_core.cli.main train easyocc_base --data city --out runs/base
    """
    from occ_core.training.run import train as run

    try:
        path = run(
            config,
            data or (),
            out,
            steps=steps,
            resume=resume,
            overwrite=overwrite,
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
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":  # torchrun starts several
        typer.echo(f"wrote {path}; to look at: {out / 'report.html'}")


def predict(
    checkpoint: Annotated[
        str, typer.Argument(help="Model: .safetensors (with its json), .onnx; or nano, which ships.")
    ],
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

        occ predict nano city predictions

        occ predict runs/nano/model.safetensors drive predictions
    """
    from rich.progress import Progress

    from occ_core.inference.predict_set import predict_set
    from occ_core.sources.open import Choice

    with Progress() as progress:
        task = progress.add_task("predicting", total=None, visible=False)
        count, kept = predict_set(
            checkpoint,
            dataroot,
            out,
            backend=backend,
            threads=threads,
            scenes=scene or None,
            version=version,
            choice=Choice(tuple(camera or ()), tuple(exclude or ()), strict),
            alone=alone,
            overwrite=overwrite,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
            on_remark=lambda line: typer.secho(line, err=True, fg=typer.colors.YELLOW),
        )
    typer.echo(f"{count} predictions in {out}" + (f", {kept} of them were there already" if kept else ""))


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
        typer.Option(help="What was predicted, by a robot without LiDAR: do images of other frames agree?"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data set in nuScenes layout: LiDAR's poses for RayIoU, images for --html. Default: beside GTS."
        ),
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
    from rich.console import Console
    from rich.progress import Progress

    from occ_core.cli.eval_page import evaluated_frames, write_eval_page
    from occ_core.evaluation.evaluate import evaluate as run
    from occ_core.evaluation.in_words import in_words
    from occ_core.evaluation.report import write_report

    frames = None if html is None else evaluated_frames(predictions, truths, data or lidar or images, version)
    remarks: list[str] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("scoring", total=None)
        report = run(
            predictions,
            truths,
            lidar=lidar,
            images=images,
            data=data,
            version=version,
            workers=workers,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            on_remark=remarks.append,
        )
    for shown in in_words(report):
        if isinstance(shown, str):
            typer.echo(shown)
        else:
            Console().print(shown)
    for line in remarks:
        typer.echo(line)
    if json is not None:
        write_report(json, report)
    if html is not None and frames is not None:
        write_eval_page(html, frames, report, remarks)


def export(
    checkpoint: Annotated[str, typer.Argument(help="Model, .safetensors with its json; or nano, which ships.")],
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
