"""Options shared by several commands, and functions that read their values."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import headings
from hrseg_cli.commands.shards import share_of_cores
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.limits import CLICKS

if TYPE_CHECKING:  # pydantic and rich take longer to import than the help to print
    from rich.progress import Progress

    from hrseg_cli.data.datasets import Opened

METRICS = ", ".join(catalog.METRICS)
ADAPTERS = ", ".join(catalog.ADAPTERS)
RULES = "auto, nonzero, gt128, void128, void255, grabcut"
PROTOCOLS = "ritm, ritm-davis, simpleclick, fixed, plain, photo, fast, fast_focus, off_centre, sam, sam_zoom"


def starting(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Shell completion of an option's value: those of ``names()`` that start with what is typed."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def model_names() -> list[str]:
    """Models that need no file: those whose weights come with hrseg, the graph cut, and public weights."""
    from hrseg_cli.checkpoints.manifests import model_manifest_names

    weights = Path(__file__).resolve().parent.parent / "weights"
    return [*sorted(path.stem for path in weights.glob("*.safetensors")), "grabcut", *model_manifest_names()]


def dataset_names() -> list[str]:
    from hrseg_cli.data.manifest import manifest_names

    return [*manifest_names(), "procedural", "samples"]


def _protocols() -> list[str]:
    from hrseg_cli.recipe import protocol_names

    return protocol_names()


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=starting(model_names),
        rich_help_panel=headings.MODEL,
        help="Network to use: a name with weights (clicknet_m, h18s, grabcut; 'hrseg list weights'), a checkpoint "
        "(.safetensors, or RITM's .pth), an .onnx file of 'hrseg export', BASE+ADAPTER, or a prefix with a place, such "
        "as sam:FOLDER ('hrseg list prefixes').",
    ),
]
Datasets = Annotated[
    list[str],
    typer.Option(
        "--dataset",
        "-d",
        metavar="DATASET",
        autocompletion=starting(dataset_names),
        rich_help_panel=headings.DATA,
        help="Dataset: a folder (such as one with images/ and masks/), a known name ('hrseg list datasets'), "
        "NAME=FOLDER to choose its name or layout, 'procedural' for drawn images, or 'samples' for "
        "four photographs. Append :range=LOW..HIGH for "
        "images with more than 8 bits. Repeatable.",
    ),
]
Metrics = Annotated[
    list[str],
    typer.Option(
        "--metric",
        metavar="METRIC",
        autocompletion=starting(lambda: catalog.METRICS),
        rich_help_panel=headings.METRICS,
        help=f"Metric to measure: {METRICS} ('hrseg list metrics'). Repeatable.",
    ),
]


def protocol_option(more: str = " ('hrseg list protocols')", default: bool | str = True) -> Any:
    return typer.Option(
        "--protocol",
        metavar="PROTOCOL",
        autocompletion=starting(_protocols),
        rich_help_panel=headings.PROTOCOL,
        show_default=default,
        help=f"How a click becomes a mask: {PROTOCOLS}, or a YAML file{more}.",
    )


def changes_option(heading: str, changed: str, example: str) -> Any:
    return typer.Option(
        "--set",
        metavar="KEY=VALUE",
        rich_help_panel=heading,
        help=f"Change a value of the {changed}, e.g. {example}. Repeatable.",
    )


ProtocolName = Annotated[str | None, protocol_option(default="the dataset's own, or ritm")]
FastProtocol = Annotated[str, protocol_option()]
Changes = Annotated[list[str], changes_option(headings.PROTOCOL, "protocol", "zoom.target=600")]
Refine = Annotated[
    str | None,
    typer.Option(
        "--refine",
        metavar="REFINER",
        rich_help_panel=headings.PROTOCOL,
        help=f"Refine masks after every click: {', '.join(catalog.REFINERS)} ('hrseg list refiners'). Short for --set "
        "refine.name=REFINER; also: refine.when=last, refine.weights=FILE, refine.options.KEY=VALUE.",
    ),
]
First = Annotated[
    str | None,
    typer.Option(
        "--first",
        metavar="PROMPT",
        rich_help_panel=headings.PROTOCOL,
        show_default="the protocol's, usually click",
        help="What the simulated annotator starts with: click, or box, the object's bounding box, which counts as one "
        "click. Short for --set first=PROMPT.",
    ),
]
BoxJitter = Annotated[
    float | None,
    typer.Option(
        "--box-jitter",
        metavar="SHARE",
        min=0,
        max=0.5,
        rich_help_panel=headings.PROTOCOL,
        show_default="the protocol's, usually 0",
        help="With --first box: move each side of the box by up to this share of the box's height or width, at random.",
    ),
]
Until = Annotated[
    list[str],
    typer.Option(
        "--until",
        metavar="VALUE",
        rich_help_panel=headings.METRICS,
        show_default="0.90",
        help="Stop once every metric reaches VALUE; above 1 disables stopping. METRIC=VALUE sets one metric. "
        "Repeatable.",
    ),
]
MaxClicks = Annotated[
    int | None,
    typer.Option(
        "--max-clicks",
        metavar="N",
        min=1,
        max=CLICKS,
        rich_help_panel=headings.PROTOCOL,
        show_default="the protocol's",
        help="Maximum number of clicks per object.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", min=1, rich_help_panel=headings.DATA, help="Use the first N objects of each dataset."
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        min=0,
        rich_help_panel=headings.MACHINE,
        help="Worker processes with one thread each; 0 starts one per core. With --in-flight: threads, at most 4 for "
        "0. Results do not depend on it.",
    ),
]
InFlight = Annotated[
    int,
    typer.Option(
        "--in-flight",
        metavar="N",
        min=0,
        rich_help_panel=headings.MACHINE,
        help="Objects processed together in batches; 0 means 1 on a CPU and 32 on a GPU. Results differ by rounding "
        "only.",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="FOLDER",
        rich_help_panel=headings.DATA,
        show_default="$HRSEG_DATA, or ./data",
        help="Data root: the folder that holds the named datasets.",
    ),
]
SkipBroken = Annotated[
    bool,
    typer.Option(
        "--skip-broken",
        rich_help_panel=headings.DATA,
        help="Leave out objects with broken or missing files, and list these files at the end (exit code 1). Decodes "
        "every file before it starts.",
    ),
]
Instances = Annotated[
    bool,
    typer.Option(
        "--instances",
        rich_help_panel=headings.DATA,
        help="Masks hold several objects, one per grey value or palette index.",
    ),
]


def _binarize(default: str) -> Any:
    return typer.Option(
        "--binarize",
        metavar="RULE",
        rich_help_panel=headings.DATA,
        show_default=default,
        help=f"Which grey values of a mask are object, and which are ignored: {RULES}.",
    )


Binarize = Annotated[str | None, _binarize("the protocol's")]
BinarizeAuto = Annotated[str | None, _binarize("auto")]
Range = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="LOW..HIGH",
        rich_help_panel=headings.DATA,
        help="Values shown as black and white in images with more than 8 bits, such as 0..4095.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        rich_help_panel=headings.MACHINE,
        help="Network precision: fp32, or bf16, which not every model has (faster where the processor supports it; "
        "results differ slightly).",
    ),
]


def runtime_option(more: str = "") -> Any:
    return typer.Option(
        "--runtime",
        metavar="RUNTIME",
        rich_help_panel=headings.MACHINE,
        show_default="torch, or onnxruntime for an .onnx file",
        help=f"Inference library: torch, onnxruntime, openvino or openvino-bf16.{more}",
    )


def device_option(default: bool | str = True, auto: bool = False) -> Any:
    return typer.Option(
        "--device",
        metavar="DEVICE",
        autocompletion=starting(lambda: ("auto", "cpu", "cuda") if auto else ("cpu", "cuda")),
        rich_help_panel=headings.MACHINE,
        show_default=default,
        help=f"Device: {'auto (a GPU if there is one), ' if auto else ''}cpu, cuda or cuda:N.",
    )


def out_option(metavar: str, text: str, default: bool | str = True) -> Any:
    return typer.Option(
        "--out", "-o", metavar=metavar, rich_help_panel=headings.OUTPUT, show_default=default, help=text
    )


def format_option(text: str) -> Any:
    return typer.Option("--format", metavar="FORMAT", rich_help_panel=headings.OUTPUT, help=text)


Runtime = Annotated[str | None, runtime_option()]
Device = Annotated[str, device_option()]
Band = Annotated[
    str,
    typer.Option(
        "--band",
        metavar="WIDTH",
        rich_help_panel=headings.METRICS,
        help="Width of Boundary IoU's band: a share of the image diagonal, or pixels such as 5px.",
    ),
]


def until_of(texts: list[str], metrics: list[str]) -> dict[str, float]:
    """Metric -> the score at which clicking stops, 0.90 by default. Raises HrsegError or UnknownName."""
    if not metrics:
        raise HrsegError(f"--metric: name at least one of {METRICS}")
    for metric in metrics:
        if metric not in catalog.METRICS:
            raise UnknownName("metric", metric, catalog.METRICS)
    targets = dict.fromkeys(metrics, 0.90)
    for text in texts:
        name, equals, value = text.rpartition("=")
        if equals and name not in targets:
            raise HrsegError(f"--until {text}: '{name}' is not measured; add --metric {name}")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise HrsegError(f"--until {text}: write a number above 0 such as 0.90, or biou=0.85")
        targets.update(dict.fromkeys([name] if equals else metrics, number))
    return targets


def with_refiner(changes: list[str], name: str | None) -> list[str]:
    """Changes of a protocol, with the refiner of --refine if one is given. Raises UnknownName."""
    if name is None:
        return changes
    catalog.check("refiner", name)
    return [f"refine.name={name}", *changes]


def with_first(changes: list[str], first: str | None, jitter: float | None) -> list[str]:
    """Changes of a protocol, with those of --first and --box-jitter if they are given."""
    given = {"first": first, "box_jitter": jitter}
    return [*(f"{key}={value}" for key, value in given.items() if value is not None), *changes]


def in_flight_of(number: int, device: str) -> int:
    """0 means 1 on a CPU, where batches save no time, and 32 on an accelerator."""
    return number or (1 if device == "cpu" else 32)


def available_cores() -> int:
    """The cores that this process may use; on systems that do not tell (macOS, Windows), all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_of(number: int, device: str, in_flight: int = 1) -> int:
    """0 means one per available core, at most four with several objects in flight, and one on an accelerator that
    processes one object at a time."""
    if number:
        return number
    cores = share_of_cores(available_cores())
    if in_flight > 1:
        # Threads wait for each other: a next click took 1.58 ms with one thread, 1.03 with two, 1.24 with sixteen.
        return min(4, cores)
    return cores if device == "cpu" else 1


def run_folder(name: str) -> Path:
    """``runs/NAME``, with characters that every file system accepts, shortened if the name is too long."""
    from hashlib import sha256

    plain = "".join(c if c.isalnum() or c in "-_.=+" else "_" for c in name)
    return Path("runs") / (plain if len(plain) <= 120 else f"{plain[:100]}-{sha256(name.encode()).hexdigest()[:8]}")


def device_of(text: str) -> str:
    """The device, if this machine has it. Imports torch for anything but ``cpu``. Raises HrsegError."""
    if text == "cpu":
        return text
    from hrseg_cli.engine.devices import available

    return available(text)


def note(line: str) -> None:
    """Print a line on stderr, with flags for parameters and without control characters, which file names may have."""
    typer.echo(with_flags("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)), err=True)


FLAGS = {  # parameters whose flags have other names
    "changes": "--set",
    "datasets": "--dataset",
    "formats": "--format",
    "initial": "--init-mask",
    "loggers": "--logger",
    "measures": "--measure",
    "metrics": "--metric",
    "options": "--set",
    "span": "--range",
}


def with_flags(line: str) -> str:
    """A message of the library with its parameters in backticks replaced by flags of the command line."""

    def flag(found: re.Match[str]) -> str:
        return FLAGS.get(found[1], f"--{found[1].replace('_', '-')}")

    return re.sub("`([a-z][a-z0-9_]*)`", flag, line)


def complain_of(broken: Sequence[str]) -> None:
    """List the files that were skipped. Raises HrsegError if there are any."""
    for line in broken:
        note(f"hrseg: skipped: {line}")
    if broken:
        raise HrsegError(
            f"skipped {len(broken)} broken files, listed above; everything else is done; repair or remove them"
        )


def warn_incomplete(opened: Opened) -> None:
    """Warn on stderr about incomplete known datasets."""
    for name, counts in opened.incomplete.items():
        there, _, published = counts.partition(" of ")
        note(f"{opened.places[name]}: only {there} of {published} objects found; its number is not comparable")


def progress(of_bytes: bool = False) -> Progress:
    """A progress bar on stderr with the remaining time; removed when finished."""
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)  # knows NO_COLOR
    done = (rich.DownloadColumn(), rich.TransferSpeedColumn()) if of_bytes else (rich.MofNCompleteColumn(),)
    return rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        *done,
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.is_dumb_terminal,
    )
