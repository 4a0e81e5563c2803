"""`occ bench`: how long things take on this machine, and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from occ_core.cli.world import size_of

app = typer.Typer(no_args_is_help=True, help="Measure, for the tables in benchmarks/; time things on an idle machine.")


@app.command()
def labels(
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the class maps and depths, pixels.")] = "450x800",
    frames: Annotated[int, typer.Option(help="Frames in the window of a label.", min=1)] = 14,
    repeats: Annotated[int, typer.Option(help="Times that each is measured; the median is shown.", min=1)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Time lifting, voting and ray casting of six cameras, teachers excluded, beside plain numpy and Open3D.

    Example:  occ bench labels --json benchmarks/labels_speed.json
    """
    import json

    from occ_core.bench.host import host
    from occ_core.bench.label_speed import bench_labels
    from occ_core.files import write_atomically

    height, width = size_of(size)
    figures = bench_labels(height, width, frames, repeats)
    record = {**host(("numpy", "numba", "open3d")), **figures}
    if json_file is not None:
        write_atomically(json_file, (json.dumps(record, indent=1) + "\n").encode())
    for name, row in figures["ms"].items():
        typer.echo(f"{name:10} {row if isinstance(row, str) else format(row['median'], '8.0f') + ' ms a keyframe'}")
    typer.echo(f"{figures['megabytes_a_frame_kept']:.1f} MB kept a frame, peak {figures['peak_memory_mb']:.0f} MB")


@app.command()
def recipes(
    dataroot: Annotated[Path, typer.Argument(help="Data set in nuScenes layout with gts/, such as a simulated one.")],
    teacher: Annotated[str, typer.Option(help="As of `occ labels make`.")] = "realistic",
    workers: Annotated[int, typer.Option(help="Scenes at the same time; 0: one per core.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the errors that the teacher `realistic` makes.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Score the labels of every recipe, and of `best` with one part left out, against exact truth.

    Labels every keyframe in memory, from the same maps for all recipes, and stores none. Prints one table in percent:
    IoU, mIoU of 15 and 17 classes, cells decided, and precision of free, under the camera mask and in the full scene.

    Example:  occ bench recipes city --json benchmarks/labels_recipes.json
    """
    import os

    from occ_core.bench.host import host
    from occ_core.bench.recipes import bench_recipes, markdown
    from occ_core.evaluation.report import write_report

    try:
        figures = bench_recipes(dataroot, teacher, seed, workers or os.cpu_count() or 1)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if json_file is not None:
        write_report(json_file, {**host(("numpy", "numba", "scipy", "opencv-python-headless")), **figures})
    typer.echo(markdown(figures))
    typer.echo(f"{figures['scenes']} scenes, {figures['keyframes']} keyframes, {figures['cpu_s']:.0f} CPU-s")
    for scene, reasons in figures["left_out"].items():
        typer.echo(f"left out in {scene}: {len(reasons)} images or frames, first: {reasons[0]}")


@app.command()
def real_labels(
    dataroots: Annotated[
        list[Path], typer.Argument(metavar="DATAROOT...", help="nuScenes layout with LiDAR, or SemanticKITTI.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(help="As of `occ labels make`. Default: `best` as it suits a LiDAR, see docs/labels.md."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class teacher of SemanticKITTI, such as files:DIR. Default: the labels of its points."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Labels made from one part of real LiDAR against the other part: are occupied and free cells so?

    Holds out every other degree of elevation of each sweep, then every other sweep. Prints one table in percent, and
    another by class where points have classes.

    Example:  occ bench real-labels data/nuscenes data/semantickitti --json benchmarks/labels_real.json
    """
    from rich.progress import Progress, TaskID

    from occ_core.bench.host import host
    from occ_core.bench.real_labels import SPLITS, class_markdown, markdown, open_drives, score_drive
    from occ_core.evaluation.report import write_report
    from occ_core.labels.recipes import load_recipe

    settings = load_recipe(recipe or "lidar")
    rows = []
    with Progress(transient=True) as progress:
        for drive in (drive for dataroot in dataroots for drive in open_drives(dataroot, classes)):
            for split in SPLITS if len(drive.frames) > 1 else SPLITS[:1]:
                task = progress.add_task(f"{drive.name}, {split}", total=None)

                def on_progress(done: int, total: int, task: TaskID = task) -> None:
                    progress.update(task, completed=done, total=total)

                rows.append(score_drive(drive, split, settings, on_progress))
    if json_file is not None:
        about = {"recipe": settings.model_dump(), "classes": classes, "rows": rows}
        write_report(json_file, {**host(("numpy", "numba", "opencv-python-headless")), **about})
    typer.echo(markdown(rows))
    typer.echo(f"\n{class_markdown(rows)}" if class_markdown(rows) else "")


@app.command()
def models(
    plan: Annotated[Path, typer.Argument(help="YAML file of runs, such as benchmarks/models/plan.yaml.")],
    held_out: Annotated[Path, typer.Argument(help="Data set in nuScenes layout with gts/ that no run trains on.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones are kept.")] = Path("runs/models"),
    seeds: Annotated[int, typer.Option(help="Runs of each model, with seeds 0, 1, ...", min=1)] = 3,
    workers: Annotated[int, typer.Option(help="Runs at the same time, one core each; 0: one per core.")] = 0,
    run: Annotated[list[str] | None, typer.Option(help="Only this run of the plan; may be repeated.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Train models side by side, same data, same steps, several seeds, and score each on held-out data.

    Each run is `occ train`, `occ predict` and `occ eval`, in a folder of its own. Example:

        occ bench models benchmarks/models/plan.yaml heldout --json benchmarks/models.json
    """
    import os

    from occ_core.bench.host import host
    from occ_core.bench.models import bench_models, markdown
    from occ_core.evaluation.report import write_report

    try:
        figures = bench_models(plan, held_out, out, seeds, workers or os.cpu_count() or 1, run)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if json_file is not None:
        write_report(json_file, {**host(("numpy", "torch", "numba")), **figures})
    typer.echo(markdown(figures))


@app.command()
def depth(
    checkpoint: Annotated[Path, typer.Argument(help="Model that renders depth, .safetensors with its json.")],
    dataroot: Annotated[Path, typer.Argument(help="Data set in nuScenes layout.")],
    truth: Annotated[str, typer.Option(help="oracle: exact depth of a simulated city; lidar: each frame's sweep.")] = (
        "oracle"
    ),
    pictures: Annotated[Path | None, typer.Option(help="Also draw rendered and true depth into this folder.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Score the depth that OccNeRF or SelfOcc renders, raw and scaled by the median of each image.

    Example:  occ bench depth runs/selfocc/model.safetensors heldout --pictures depth
    """
    from occ_core.bench.host import host
    from occ_core.bench.rendered_depth import score_rendered_depth
    from occ_core.evaluation.report import write_report

    def draw(frame, views) -> None:
        if pictures is not None:
            from occ_core.show.depth import depth_picture
            from occ_core.show.pictures import save_png

            save_png(pictures / f"{frame.scene}_{frame.stamp_ns}.png", depth_picture(views))

    figures = score_rendered_depth(checkpoint, dataroot, truth, draw)
    if json_file is not None:
        write_report(json_file, {**host(("numpy", "torch")), "truth": truth, **figures})
    for kind in ("raw", "median"):
        errors = ", ".join(f"{name} {value:.3f}" for name, value in figures[kind].items())
        typer.echo(f"{kind:7} {errors}")
    typer.echo(f"{figures['images']} images, protocol {figures['protocol']}, truth {truth}")


@app.command()
def step(
    config: Annotated[Path, typer.Argument(help="YAML file of a camera network, such as config/occnerf.yaml.")],
    dataroot: Annotated[Path, typer.Argument(help="Data set or bag; with LiDAR where losses need labels.")],
    steps: Annotated[int, typer.Option(help="Training steps; of several, the first does not count.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Does a network fit this machine? Time and peak memory of a training step and an answer on a real keyframe.

    Nothing is kept of what it learns: labels are the sweep's points, all of one class.

    Example:  occ bench step config/easyocc_base.yaml /data/nuscenes
    """
    from occ_core.bench.host import host
    from occ_core.bench.training_step import bench_step
    from occ_core.evaluation.report import write_report
    from occ_core.training.config import load_config

    figures = bench_step(load_config(config, threads=threads), dataroot, steps, typer.echo)
    if json_file is not None:
        write_report(json_file, {**host(("numpy", "torch")), **figures})
    peak_gb = figures["peak_memory_mb"] / 1024
    typer.echo(
        f"{figures['model']}: {figures['parameters_m']:.1f} M parameters, {figures['step_s']:.3g} s a step, "
        f"{figures['samples_per_s']:.3g} samples a second, {figures['answer_s']:.3g} s an answer, peak {peak_gb:.1f} GB"
    )


@app.command()
def mapping(
    repeats: Annotated[int, typer.Option(help="Times that each is measured; the median is shown.", min=2)] = 20,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Time what the fused map takes a frame: processor time of one thread, so that other work counts little.

    Example:  occ bench mapping --json benchmarks/mapping.json
    """
    from occ_core.bench.host import host
    from occ_core.bench.mapping import bench_mapping
    from occ_core.evaluation.report import write_report

    figures = bench_mapping(repeats)
    if json_file is not None:
        write_report(json_file, {**host(("numpy", "numba")), **figures})
    for name, value in figures["cpu_ms"].items():
        typer.echo(f"{name:32} {value:8.2f} ms")
    typer.echo(f"{figures['cells_seen']} cells seen, {figures['cells_of_map']} in the map, {figures['update']}")


@app.command()
def backends(
    model: Annotated[Path, typer.Argument(help="Checkpoint, .safetensors with its json beside it.")],
    data: Annotated[Path, typer.Argument(help="Data set or ROS 2 bag; with gts/ in it, mIoU is measured, too.")],
    calibrate: Annotated[
        Path | None, typer.Option(help="Bag or data set for int8, other than DATA. Default: no int8.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of DATA, evenly spread.", min=1)] = 20,
    repeats: Annotated[int, typer.Option(help="Times that each frame runs in each backend.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    peer: Annotated[
        Path | None, typer.Option(help="Python file of another network to time, such as benchmarks/peers/flashocc.py.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Time EasyOcc nano in every backend and precision, frame by frame in turn, and compare the answers with torch's.

    The time is of the network alone: images are preprocessed, tables built. Example:

        occ bench backends nano.safetensors heldout --calibrate city --peer benchmarks/peers/flashocc.py
    """
    import tempfile

    from occ_core.bench.host import host
    from occ_core.errors import need
    from occ_core.evaluation.report import write_report

    need("torch", "torch"), need("onnx", "onnx")
    from occ_core.bench.backends import bench_backends, markdown

    with tempfile.TemporaryDirectory() as folder:
        figures = bench_backends(model, data, Path(folder), calibrate, frames, repeats, threads, peer)
    if json_file is not None:
        write_report(json_file, {**host(("numpy", "torch", "onnxruntime", "openvino", "tensorrt")), **figures})
    typer.echo(markdown(figures))
    if other := figures.get("peer"):
        typer.echo(f"{other['name']}: {other['parameters_m']:.1f} M parameters, {other['gflop']:.0f} GFLOP, untrained")
    for name, reason in figures["left_out"].items():
        typer.echo(f"left out: {name}: {reason}")


@app.command()
def fusion(
    config: Annotated[Path, typer.Argument(help="YAML file of an OccLE network, such as config/occle_small.yaml.")],
    repeats: Annotated[int, typer.Option(help="Passes that are timed; the median is shown.", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Time and memory of OccLE's fusion at 1, 2, 4 and 8 times as many cells, Dual Mamba beside plain convolutions.

    Forward and backward pass. Example:  occ bench fusion config/occle_small.yaml --json fusion.json
    """
    from occ_core.bench.fusion import MIXERS, bench_fusion
    from occ_core.bench.host import host
    from occ_core.errors import InvalidInput
    from occ_core.evaluation.report import write_report
    from occ_core.models.build import kind_of
    from occ_core.models.occle.config import OccleConfig
    from occ_core.training.config import load_config

    model = load_config(config).model
    if kind_of(model) != "occle":
        raise InvalidInput(f"{config}: this measures OccLE's fusion, its model '{model.name}' has none")
    model = cast(OccleConfig, model)
    sizes = model.fusion_channels, model.fusion_stages, model.fusion_heads, model.fusion_state
    figures = bench_fusion(model.volume_channels, *sizes, repeats, threads)
    if json_file is not None:
        write_report(json_file, {**host(("numpy", "torch")), **figures})
    for mixer in MIXERS:
        for row in figures[mixer]:
            shape = " x ".join(str(n) for n in row["shape"])
            typer.echo(f"{mixer:6} {shape:15} {row['step_cpu_s']:8.3f} CPU s {row['memory_mb']:8.0f} MB")
