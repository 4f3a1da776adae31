"""hrseg list: the names that other commands accept. It imports neither torch nor OpenCV."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import options
from hrseg_cli.commands.rows import FORMATS, Rows, written
from hrseg_cli.data.paths import data_root
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.parsing import header_of, read_yaml

PACKAGE = Path(__file__).resolve().parent.parent
WEIGHTS = PACKAGE / "weights"


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            autocompletion=options.starting(lambda: KINDS),
            help="models, prefixes, weights, datasets, protocols, recipes, adapters, refiners, losses, metrics or "
            "layouts.",
        ),
    ] = None,
    format_: Annotated[
        str, options.format_option(f"Output format: {', '.join(FORMATS)} (one JSON object per line).")
    ] = "text",
    root: options.Root = None,
) -> None:
    """List the names that other commands accept, one line each. Without KIND: the kinds of names.

    models: networks, for --model and recipes. weights: trained networks that come with hrseg or are downloaded, with
    their terms. datasets: licence, source, and whether they are present below the data root.
    """
    if kind is not None and kind not in KINDS:
        raise UnknownName("kind", kind, KINDS)
    if kind is None:
        rows = [{"kind": name, "about": about} for name, (about, _) in KINDS.items()]
    else:
        rows = KINDS[kind][1](data_root(root))
    typer.echo(written(rows, format_), nl=False)


def datasets(root: Path) -> Rows:
    """Known datasets, and which of their parts are present below ``root``."""
    from hrseg_cli.data.manifest import load_manifest, overview
    from hrseg_cli.data.unpack import size_text

    rows = []
    for one in overview(root):
        counts = (f"{name} {'~' if name in one['about'] else ''}{n or '?'}" for name, n in one["splits"].items())
        size = "unknown" if one["bytes"] is None else size_text(one["bytes"])
        rows.append(
            {
                "dataset": one["name"],
                "objects": ", ".join(counts),
                "download": size + (", by hand" if one["manual"] else ""),
                "present": {"ready": "yes", "absent": "no"}.get(one["state"], one["state"]),
                "licence": one["licence"],
                "source": load_manifest(one["name"]).sources[0],
            }
        )
    drawn = {"objects": "any number", "download": "none", "present": "yes", "licence": "hrseg's", "source": "drawn"}
    from hrseg_cli.data.bundled import sample_masks, sample_photographs

    samples = {
        "objects": str(len(sample_masks())),
        "download": "none",
        "present": "yes" if sample_photographs() else "no: pip install 'hrseg[samples]'",
        "licence": "public domain, CC0",
        "source": "https://scikit-image.org",
    }
    return [*rows, {"dataset": "procedural", **drawn}, {"dataset": "samples", **samples}]


def weights(root: Path) -> Rows:
    """The weights shipped with hrseg, from the header of each file and the card next to it, then public ones."""
    from hrseg_cli.checkpoints.manifests import load_model_manifest, model_manifest_names, place_of

    rows = []
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        header = read_header(path)
        shapes = [one["shape"] for name, one in header.items() if name != "__metadata__" and not _is_statistic(name)]
        card_file = path.with_suffix(".yaml")
        card = read_yaml(card_file) if card_file.is_file() else {}
        rows.append(
            {
                "model": path.stem,
                "present": "included",
                "default": "yes" if path.stem == catalog.DEFAULT_MODEL else "no",
                "parameters": f"{sum(map(math.prod, shapes)) / 1e6:.1f} M",
                "size": f"{path.stat().st_size / 1e6:.1f} MB",
                "trained on": str(card.get("trained_on", "unknown")),
                "terms": str(card.get("terms", "unknown")),
            }
        )
    for name in model_manifest_names():
        one = load_model_manifest(name)
        place = place_of(one)
        how = "on first use" if one.hub or (one.file and one.file.urls) else "by hand"
        rows.append(
            {
                "model": name,
                "present": "yes" if place and place.is_file() else f"no, {how}",
                "default": "no",
                "parameters": one.parameters,
                "size": one.download,
                "trained on": one.trained_on,
                "terms": one.licence,
            }
        )
    return rows


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: names, types and shapes of its tensors, and its ``__metadata__``."""
    try:
        with path.open("rb") as file:
            return header_of(file)
    except (OSError, ValueError):
        raise HrsegError(f"{path}: not a safetensors file; install hrseg again") from None


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def models(root: Path) -> Rows:
    """Networks, with "included" for those that come with weights."""
    return [
        {
            "model": name,
            "weights": "included" if (WEIGHTS / f"{name}.safetensors").is_file() else "–",
            "about": about(target),
        }
        for name, target in catalog.MODELS.items()
    ]


def _table(kind: str) -> Callable[[Path], Rows]:
    """Rows of a table of the catalog."""
    return lambda root: [{kind: name, "about": about(target)} for name, target in catalog.TABLES[kind].items()]


def about(target: str) -> str:
    """First sentence of the docstring of ``module:object``, read from the source: importing a network takes seconds.

    A plain assignment may have a docstring too: a string on the next line. Empty where there is none.
    """
    import ast
    import importlib.util

    module, _, name = target.partition(":")
    file = PACKAGE.parent.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    if not file.is_file():  # of another package, which may import what it likes
        spec = importlib.util.find_spec(module)
        file = Path(spec.origin if spec and spec.origin else "")
    if file.suffix != ".py":
        return ""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return _sentence(ast.get_docstring(node) or "")
        if isinstance(node, ast.ImportFrom) and any(name == (one.asname or one.name) for one in node.names):
            return about(f"{node.module}:{name}")
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            text = following.value if isinstance(following, ast.Expr) else None
            return _sentence(str(text.value)) if isinstance(text, ast.Constant) else ""
    return ""


def protocols(root: Path) -> Rows:
    from hrseg_cli.recipe import data_folder, protocol_names

    folder = data_folder("recipes") / "protocols"
    return [{"protocol": name, "about": comment(folder / f"{name}.yaml")} for name in protocol_names()]


def recipes(root: Path) -> Rows:
    from hrseg_cli.recipe import data_folder, recipe_names

    folder = data_folder("recipes")
    return [{"recipe": name, "about": comment(folder / f"{name}.yaml")} for name in recipe_names()]


def comment(file: Path) -> str:
    """First sentence of the comment at the top of a YAML file."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return _sentence(" ".join(lines))


def _sentence(text: str) -> str:
    paragraph = " ".join(text.partition("\n\n")[0].split())
    found = re.match(r"(.*?)(?<!al)\.(?: (?=[A-Z])|$)", paragraph)  # not after "et al."
    return (found[1] if found else paragraph).replace("``", "'")


KINDS: dict[str, tuple[str, Callable[[Path], Rows]]] = {
    "models": ("networks, for --model and for recipes", models),
    "prefixes": ("what else --model opens, as in sam:FOLDER", _table("prefix")),
    "weights": ("trained networks that come with hrseg or are downloaded on first use, and their terms", weights),
    "datasets": ("known datasets: licence, source, and whether they are present", datasets),
    "protocols": ("ways to turn clicks into masks, for --protocol", protocols),
    "recipes": ("settings of trainings, for --recipe", recipes),
    "adapters": ("small trainable parts of a frozen model, for --adapter", _table("adapter")),
    "refiners": ("ways to improve a mask, for 'hrseg refine' and --refine", _table("refiner")),
    "losses": ("training losses, for recipes", _table("loss")),
    "metrics": ("scores of a mask, for --metric", _table("metric")),
    "layouts": ("arrangements of a dataset's files, for --dataset LAYOUT=FOLDER", _table("layout")),
}
