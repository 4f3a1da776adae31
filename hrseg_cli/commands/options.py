"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast, get_args

import typer

from hrseg_cli import catalog
from hrseg_cli.commands.shards import share_of_cores
from hrseg_cli.errors import HrsegError, UnknownName

if TYPE_CHECKING:  # pydantic and rich take longer to import than the help to print
    from collections.abc import Iterable

    from rich.progress import Progress

    from hrseg_cli.data.samples import Ref
    from hrseg_cli.recipe import BinarizeRule, Protocol

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A checkpoint (.pth of RITM, .safetensors of hrseg), BASE+ADAPTER, or a name: h18s, grabcut.",
    ),
]
Datasets = Annotated[
    list[str],
    typer.Option(
        "--dataset",
        "-d",
        metavar="DATASET",
        help="A folder, NAME=FOLDER (a layout's name forces that layout), a name under the data root, or 'procedural'. "
        "FOLDER:range=LOW..HIGH gives black and white of images with more than 8 bits. Repeatable.",
    ),
]
Metrics = Annotated[list[str], typer.Option("--metric", metavar="METRIC", help="iou, biou or mba; repeatable.")]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="PROTOCOL",
        help="ritm, ritm-davis, fixed, plain, or a YAML file [the known dataset's, else ritm].",
    ),
]
Changes = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change the protocol, e.g. zoom.target=600. Repeatable.")
]
Until = Annotated[
    list[str],
    typer.Option(
        "--until",
        metavar="VALUE",
        help="Stop an object when every metric has reached this: 0.90, or METRIC=VALUE, repeatable. Above 1: never.",
    ),
]
MaxClicks = Annotated[
    int | None, typer.Option("--max-clicks", metavar="N", min=1, help="Clicks per object [protocol's].")
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N objects of each dataset.")
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        min=0,
        help="Processes, one thread each; 0: one per core. With --in-flight: threads for clicks, scores and decoding; "
        "0: up to 4. Results do not depend on it.",
    ),
]
InFlight = Annotated[
    int,
    typer.Option(
        "--in-flight",
        metavar="N",
        min=0,
        help="Objects at once on one model, their looks in batches; 0: 1 on a CPU, 32 on a GPU. Numbers depend on "
        "it by rounding only.",
    ),
]
Root = Annotated[
    Path | None, typer.Option("--root", metavar="FOLDER", help="Where named datasets lie [$HRSEG_DATA or ./data].")
]
Instances = Annotated[bool, typer.Option("--instances", help="Masks hold one object per grey value or palette index.")]
Binarize = Annotated[
    str | None,
    typer.Option(
        "--binarize",
        metavar="RULE",
        help="How grey values become truth: auto, nonzero, gt128, void128, void255, grabcut [protocol's].",
    ),
]
Range = Annotated[
    str | None,
    typer.Option(
        "--range", metavar="LOW..HIGH", help="Black and white of images with more than 8 bits, such as 0..4095."
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", metavar="PRECISION", help="Of the network: fp32, or bf16: quicker, numbers differ a little."
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="RUNTIME",
        help="torch, onnxruntime, openvino or openvino-bf16; an .onnx file of 'hrseg export' works as --model too.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu or cuda[:N].")]
Band = Annotated[
    str,
    typer.Option("--band", metavar="WIDTH", help="Width of Boundary IoU's band: 0.02 of the diagonal, or e.g. 5px."),
]


def protocol_of(name: str | None, changes: list[str], binarize: str | None) -> Protocol:
    """The protocol (ritm where none is named) with all that was changed on the command line, in its name too."""
    from hrseg_cli.recipe import load_protocol

    binarize_of(binarize)
    return load_protocol(name or "ritm", [*changes, *([f"binarize={binarize}"] if binarize else [])])


def own_protocols(
    name: str | None, main: Protocol, datasets: Iterable[str], changes: list[str]
) -> tuple[Protocol, dict[str, Protocol]]:
    """The protocol of most datasets, and dataset -> protocol of those whose manifest wants another.

    Only where the user names none: RITM looks at DAVIS, and only at DAVIS, through larger crops.
    """
    from hrseg_cli.data.manifest import load_manifest, manifest_names
    from hrseg_cli.recipe import load_protocol

    if name is not None:
        return main, {}
    wishes = {
        dataset: load_manifest(dataset).protocol if dataset in manifest_names() else "ritm" for dataset in datasets
    }
    own = {dataset: load_protocol(wish, changes) for dataset, wish in wishes.items() if wish != "ritm"}
    if own and len(own) == len(wishes) and len(set(wishes.values())) == 1:
        return next(iter(own.values())), {}
    return main, own


def binarize_of(text: str | None) -> BinarizeRule:
    from hrseg_cli.recipe import BinarizeRule

    rules = get_args(BinarizeRule)
    if text is not None and text not in rules:
        raise UnknownName("label rule", text, rules)
    return cast(BinarizeRule, text or "auto")


def until_of(texts: list[str], metrics: list[str]) -> dict[str, float]:
    """Asked metric -> target. Raises HrsegError or UnknownName."""
    if not metrics:
        raise HrsegError("--metric: ask for at least one of iou, biou, mba")
    for metric in metrics:
        if metric not in catalog.METRICS:
            raise UnknownName("metric", metric, catalog.METRICS)
    targets = dict.fromkeys(metrics, 0.90)
    for text in texts:
        name, equals, value = text.rpartition("=")
        if equals and name not in targets:
            raise HrsegError(f"--until {text}: '{name}' is not asked for; add --metric {name}")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise HrsegError(f"--until {text}: write a number above 0 such as 0.90, or biou=0.85")
        targets.update(dict.fromkeys([name] if equals else metrics, number))
    return targets


def band_of(text: str) -> dict[str, float]:
    """Keyword arguments of Boundary IoU: ``ratio`` of the diagonal or ``width`` in pixels."""
    if pixels := re.fullmatch(r"([1-9]\d*)px", text):
        return {"width": int(pixels.group(1))}
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < 1:
        raise HrsegError(f"--band {text}: write a share of the diagonal such as 0.02, or pixels such as 5px")
    return {"ratio": ratio}


def in_flight_of(number: int, device: str) -> int:
    """0 means 1 on a CPU, where a batch is no quicker than its parts, and 32 on an accelerator."""
    return number or (1 if device == "cpu" else 32)


def workers_of(number: int, device: str, in_flight: int = 1) -> int:
    """0 means one per core this process may use, four at most around objects in flight, and one on an accelerator that
    answers one object at a time."""
    if number:
        return number
    if not hasattr(os, "sched_getaffinity"):
        return 1
    cores = share_of_cores(len(os.sched_getaffinity(0)))
    if in_flight > 1:
        # Threads wait for each other: a next click took 1.58 ms with one, 1.03 with two and 1.24 with sixteen.
        return min(4, cores)
    return cores if device == "cpu" else 1


def run_folder(name: str) -> Path:
    """``runs/NAME``, with characters that every file system takes, cut where it grows too long for one."""
    from hashlib import sha256

    plain = "".join(c if c.isalnum() or c in "-_.=+" else "_" for c in name)
    return Path("runs") / (plain if len(plain) <= 120 else f"{plain[:100]}-{sha256(name.encode()).hexdigest()[:8]}")


def device_of(text: str) -> str:
    """Checked here so that a missing accelerator is one line. Imports torch for anything but ``cpu``."""
    if text == "cpu":
        return text
    import torch

    try:
        device = torch.device(text)
    except RuntimeError:
        raise HrsegError(f"--device {text}: write cpu or cuda") from None
    if device.type != "cuda":
        raise HrsegError(f"--device {text}: write cpu or cuda")
    if not torch.cuda.is_available():
        raise HrsegError(f"--device {text}: this PyTorch sees no GPU; use --device cpu")
    if (device.index or 0) >= (count := torch.cuda.device_count()):
        raise HrsegError(f"--device {text}: there are {count} GPUs, numbered from 0; take another number")
    return text


def note(line: str) -> None:
    """A line for whoever watches, on stderr."""
    typer.echo(line, err=True)


def data_root(root: Path | None) -> Path:
    """Where named datasets lie."""
    return root or Path(os.environ.get("HRSEG_DATA") or "data")


class Opened(NamedTuple):
    """Typed datasets. composed: name -> names of its parts. incomplete: dataset -> "objects there of all"."""

    refs: list[Ref]
    composed: dict[str, list[str]]
    incomplete: dict[str, str]


def open_datasets(
    specs: list[str], root: Path | None, instances: bool, binarize: BinarizeRule, limit: int | None
) -> Opened:
    """The objects of all typed datasets.

    Says on stderr when a known dataset is not whole. Raises HrsegError where two datasets would get the same name.
    """
    from hrseg_cli.data.known import DEFAULT_SPLIT, find_known, list_parts, pieces_of
    from hrseg_cli.data.samples import open_dataset, open_listing, split_options

    opened = Opened([], {}, {})
    seen: set[str] = set()
    for spec in specs:
        text, layout_options = split_options(spec)
        if known := find_known(text):
            split = layout_options.pop("split", DEFAULT_SPLIT)
            listings = list_parts(text, split=split, root=root, binarize=binarize, **layout_options)
            parts = [open_listing(listing, limit) for listing in listings]
            for part, piece in zip(parts, pieces_of(known, split), strict=True):
                published = piece.split.count_objects
                if limit is None and published and not piece.split.about and len(part) != published:
                    opened.incomplete[part[0].dataset] = f"{len(part)} of {published}"
                    typer.echo(f"{piece.place}: {len(part)} objects are there of {published}; not its number", err=True)
        else:
            parts = [open_dataset(spec, root=root, instances=instances, binarize=binarize, limit=limit)]
        names = [part[0].dataset for part in parts]
        if "noc" in names:
            raise HrsegError(f"--dataset {spec}: 'noc' is the name of the table; write another NAME=FOLDER")
        if twice := seen.intersection(names):
            raise HrsegError(f"--dataset {spec}: '{twice.pop()}' is there twice; tell folders apart with NAME=FOLDER")
        seen.update(names)
        if len(names) > 1:
            opened.composed[Path(text).stem] = names
        opened.refs.extend(ref for part in parts for ref in part)
    for ref in opened.refs:
        try:
            ref.id.encode()
        except UnicodeEncodeError:
            raise HrsegError(f"{ref.id!r} of {ref.dataset}: the file's name is not UTF-8; rename it") from None
    return opened


def progress(of_bytes: bool = False) -> Progress:
    """A progress bar with the time left, on stderr; gone when finished."""
    from rich import progress as rich
    from rich.console import Console

    done = (rich.DownloadColumn(), rich.TransferSpeedColumn()) if of_bytes else (rich.MofNCompleteColumn(),)
    console = Console(stderr=True)
    return rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        *done,
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
