"""`occ engine`: TensorRT engines for GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="TensorRT engines of exported models, built on the machine that runs them."
)


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="Exported model, .onnx of any precision.")],
    out: Annotated[Path | None, typer.Option(help="Folder. Default: the user's cache, where the node looks.")] = None,
) -> None:
    """Build an engine for this machine's GPU and TensorRT; takes minutes.

    The precision is that of the .onnx. A json beside the engine says what it was built from and for; an engine of
    another GPU or another TensorRT is refused when it is loaded. Example:

        occ export nano.safetensors nano_fp16.onnx --precision fp16

        occ engine build nano_fp16.onnx
    """
    from occ_core.inference.backends.tensorrt_engine import build_engine

    typer.echo(f"engine in {build_engine(model, out)}")
