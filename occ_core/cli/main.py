"""`occ`: the command line. Each flow's commands live in a module of their own beside this file.

Those modules import nothing heavy at their top, so that `occ --help` answers at once.
"""

from __future__ import annotations

import os
import sys

import typer

from occ_core.cli import adapt, bag, bench, compare, doctor, engine, labels, model, teachers, view, world
from occ_core.errors import OccError, naming_extras
from occ_core.version import __version__

app = typer.Typer(
    name="occ",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Self-taught 3D semantic occupancy for robots with cameras.

    The whole line, by hand (what `make demo` does for you):

        occ world make city --scenes 1 --keyframes 10      a simulated drive with exact ground truth

        occ bag make city drive --scene scene-0001         the drive as a ROS 2 bag

        occ predict nano city predictions                  semantic voxels, one file a keyframe

        occ eval predictions city/gts                      the score, in every protocol of the field
    """,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"occ {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the stack trace of an error."),
) -> None:
    if debug:
        os.environ["OCC_DEBUG"] = "1"


app.add_typer(world.app, name="world")
app.add_typer(bag.app, name="bag")
app.command("doctor")(doctor.doctor)
app.add_typer(labels.app, name="labels")
app.add_typer(teachers.app, name="teachers")
app.command("train")(model.train)
app.command("predict")(model.predict)
app.command("eval")(model.evaluate)
app.command("compare")(compare.compare)
app.command("export")(model.export)
app.command("adapt")(adapt.adapt)
app.add_typer(engine.app, name="engine")
app.command("view")(view.view)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2, never a stack trace."""
    try:
        with naming_extras():
            app()
    except OccError as error:
        if os.environ.get("OCC_DEBUG"):
            raise
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2)
    except BrokenPipeError:  # `occ ... | head`
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
