"""The console command: one line per command, and how errors are reported."""

from __future__ import annotations

import codecs
import io
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from hrseg_cli import __version__
from hrseg_cli.commands import headings
from hrseg_cli.commands.adapt import adapt, merge
from hrseg_cli.commands.annotate import annotate
from hrseg_cli.commands.benchmark import benchmark
from hrseg_cli.commands.evaluate import evaluate
from hrseg_cli.commands.export import export
from hrseg_cli.commands.names import list_names
from hrseg_cli.commands.options import note
from hrseg_cli.commands.predict import predict
from hrseg_cli.commands.prepare_data import prepare_data
from hrseg_cli.commands.prepare_model import prepare_model
from hrseg_cli.commands.refine import refine
from hrseg_cli.commands.report import report
from hrseg_cli.commands.simulate_clicks import simulate_clicks
from hrseg_cli.commands.train import train
from hrseg_cli.errors import HrsegError, Interrupted, UnknownName, nearest
from hrseg_cli.limits import MESSAGE

app = typer.Typer(
    name="hrseg",
    help="High-resolution interactive image segmentation: clicks in, masks out, quality counted in clicks.",
    cls=headings.Group,
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
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere on the line.")
    ] = False,
) -> None:
    """The options before the command; :func:`main` and a callback act on them."""


def _command(heading: str, name: str, function: Callable[..., None], short_help: str) -> None:
    app.command(name, cls=headings.Command, rich_help_panel=heading, short_help=short_help)(function)


_command("Segment your images", "annotate", annotate, "Segment images by clicking in the browser.")
_command("Segment your images", "predict", predict, "Write masks from given clicks.")
_command("Segment your images", "refine", refine, "Improve existing masks.")
_command("Evaluate", "evaluate", evaluate, "Count the clicks a model needs (NoC).")
_command("Evaluate", "simulate-clicks", simulate_clicks, "Write simulated clicks as JSON lines.")
_command("Evaluate", "report", report, "Make tables, curves and pictures of runs.")
_command("Evaluate", "benchmark", benchmark, "Measure time and memory per click.")
_command("Train", "train", train, "Train a model from a recipe.")
_command("Train", "adapt", adapt, "Train a small adapter on your images.")
_command("Train", "merge", merge, "Fold an adapter into its model.")
_command("Data and models", "list", list_names, "List models, datasets, protocols, recipes and more.")
_command("Data and models", "prepare-data", prepare_data, "Download, check, index or draw datasets.")
_command("Data and models", "prepare-model", prepare_model, "Download public weights.")
_command("Data and models", "export", export, "Export a model to ONNX.")


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 an error the user can fix, 2 wrong usage, 130 interrupted."""
    codecs.register_error("hrseg", _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="hrseg")
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        sys.exit(app(arguments, prog_name="hrseg", standalone_mode=False))
    except Interrupted as stop:
        _complain(str(stop) or "interrupted; finished work is kept, rerun the same command to resume")
        sys.exit(130)
    except HrsegError as error:
        if debug:
            raise
        _complain(str(error))
        sys.exit(2 if isinstance(error, UnknownName) else 1)
    except OSError as error:  # a full disk, a lost network share: not a defect of hrseg
        if debug:
            raise
        _complain(f"{error.filename or 'a file'}: {error.strerror}; fix this, then rerun the same command to resume")
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's error for wrong usage, whose class has moved between versions
            _explain_usage(error)
            sys.exit(2)
        if debug:
            raise
        if type(error).__name__ == "Abort":  # Ctrl-D
            sys.exit(1)
        if _is_short_of_memory(error):
            _complain(
                "out of memory; lower --workers, --in-flight, --set zoom.target=N or --set tiles.size=N (in training "
                "--set batch=N), give smaller images, or raise the limit (ulimit -v); then rerun the same command"
            )
            sys.exit(1)
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is too slow to import for a name
            _complain(
                "the GPU is out of memory; lower --in-flight, --workers, --set zoom.target=N or --set tiles.size=N (in "
                "training --set batch=N), or use --device cpu"
            )
            sys.exit(1)
        _complain(
            f"a defect of hrseg: {type(error).__name__}: {str(error)[:MESSAGE]}; please report it with the output of "
            "--debug"
        )
        sys.exit(1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_short_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: each library says it in its own way."""
    text = str(error).lower()
    signs = ("allocate memory", "bad_alloc", "bad allocation", "insufficient memory", "can't start new thread")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Characters that the terminal or file cannot take, as JSON writes them: a row stays readable, also by programs."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[k : k + 4]}" for k in range(0, len(units), 4)), error.end


def _explain_usage(error: Any) -> None:
    """One line for what is wrong, and one that says where to look."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(context.get_help(), err=True)
        return
    message = error.format_message().rstrip(".")
    if option := getattr(error, "option_name", None):
        message = f"no such option {option}{_hint(option, context)}"
    elif message.startswith("No such command") and not message.endswith("?"):
        message += f"; one of {', '.join(context.command.list_commands(context))}"
    _complain(f"{message[0].lower()}{message[1:]}" + ("" if message.endswith("?") else "."))
    note(f"Try '{context.command_path if context else 'hrseg'} --help'.")


def _hint(option: str, context: Any) -> str:
    """The nearest option of this command, or the commands that have exactly this one."""
    own = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
    if option == "--adapter" and "--model" in own:
        return "; write --model BASE+ADAPTER, such as clicknet_m+best.safetensors"
    group = context.find_root().command
    owners = [
        name
        for name in group.list_commands(context)
        if any(option in parameter.opts for parameter in group.get_command(context, name).params)
    ]
    if context.command is group and owners:
        typed = next((word for word in sys.argv if word in owners), owners[0])
        return f"; write it after the command: hrseg {typed} {option}"
    if owners:
        return f"; 'hrseg {owners[0]}' has it"
    near = nearest(option, own)
    return f"; did you mean {near}?" if near else ""


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut the clean-up short
    raise Interrupted


def _complain(line: str) -> None:
    text = " ".join(line.split())
    note(f"hrseg: {text if len(text) <= MESSAGE else f'{text[:MESSAGE]}...'}")


if __name__ == "__main__":
    main()
