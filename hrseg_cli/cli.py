"""The console command: one line a command, and what an error looks like."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, NoReturn

import typer

from hrseg_cli import __version__
from hrseg_cli.commands.adapt import adapt
from hrseg_cli.commands.annotate import annotate
from hrseg_cli.commands.benchmark import benchmark
from hrseg_cli.commands.evaluate import evaluate
from hrseg_cli.commands.export import export
from hrseg_cli.commands.options import note
from hrseg_cli.commands.predict import predict
from hrseg_cli.commands.prepare_data import prepare_data
from hrseg_cli.commands.report import report
from hrseg_cli.commands.simulate_clicks import simulate_clicks
from hrseg_cli.commands.train import train
from hrseg_cli.errors import HrsegError, Interrupted, UnknownName

app = typer.Typer(
    name="hrseg",
    help="High-resolution interactive image segmentation, counted in clicks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich takes longer to import than all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hrseg {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the command; both act elsewhere."""


app.command("prepare-data", short_help="Draw, check and index datasets.")(prepare_data)
app.command("simulate-clicks", short_help="Click on objects; traces as JSON lines.")(simulate_clicks)
app.command("adapt", short_help="Adapt a trained model to your pictures.")(adapt)
app.command("train", short_help="Train a click model by a recipe.")(train)
app.command("predict", short_help="Masks of your own images.")(predict)
app.command("annotate", short_help="Click on your own images in the browser.")(annotate)
app.command("evaluate", short_help="Count the clicks a model needs (NoC).")(evaluate)
app.command("export", short_help="The click step as an ONNX file.")(export)
app.command("benchmark", short_help="Where a click's time goes here.")(benchmark)
app.command("report", short_help="Tables, curves and pictures of runs.")(report)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 something to mend, 2 wrong usage, 130 interrupted."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        app(arguments)
    except Interrupted as stop:
        _complain(str(stop) or "interrupted; what was finished is kept, the same command goes on from there")
        sys.exit(130)
    except HrsegError as error:
        if debug:
            raise
        _complain(str(error))
        sys.exit(2 if isinstance(error, UnknownName) else 1)
    except OSError as error:  # a full disk, a lost share: not a defect, and nowhere else is it known what was done
        if debug:
            raise
        _complain(f"{error.filename or 'a file'}: {error.strerror}; mend that, the same command goes on from there")
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is too slow to import for a name
            _complain(
                "the GPU's memory is full; give a smaller --set zoom.target=N or tiles.size=N, fewer --in-flight or "
                "--workers, a smaller batch in training, or --device cpu"
            )
            sys.exit(1)
        _complain(f"a defect of hrseg: {type(error).__name__}: {error}; --debug shows where, please report it")
        sys.exit(1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut the tidying up short
    raise Interrupted


def _complain(line: str) -> None:
    note(f"hrseg: {' '.join(line.split())}")


if __name__ == "__main__":
    main()
