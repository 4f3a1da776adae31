"""Read settings from YAML: ``extends: NAME`` inherits from another file, ``key=value`` overrides single values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from hrseg_cli.errors import HrsegError, UnknownName, nearest
from hrseg_cli.limits import SETTINGS
from hrseg_cli.parsing import Malformed, parse_yaml, read_yaml, reason, shown

FOLDERS = {"protocol": "protocols", "tables": "paper/tables", "recipe": "."}  # below recipes/
EXAMPLES = {"protocol": "zoom.target=600", "recipe": "optim.lr=1e-4", "tables": "level=0.85"}


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Settings)


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first of (low, high) must not exceed the second")
    return pair


RISING = AfterValidator(_rising)  # for a field (low, high)


def read(model: type[Kind], kind: str, name: str, changes: Iterable[str] = ()) -> Kind:
    """Settings by name or path of a YAML file, with ``key=value`` overrides.

    The name of changed settings includes the changes. Raises UnknownName or HrsegError.
    """
    settings = _read_extended(_find(kind, name), kind)
    changes = list(changes)
    for change in changes:
        _set(settings, change, EXAMPLES[kind])
    if changes:
        settings["name"] = "+".join([str(settings.get("name", name)), *changes])
    return checked(model, settings, f"{kind} {name}")


def checked(model: type[Kind], settings: Any, what: str) -> Kind:
    """Validate plain values as settings. Raises HrsegError, with the closest known key for a misspelt one."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise HrsegError(f"{what}: {_explain(model, error)}") from None


def names(kind: str) -> list[str]:
    """Names of the settings of one kind shipped with hrseg; those in subfolders are named like ``paper/t3_lora``."""
    found = [path.relative_to(_folder(kind)) for path in _folder(kind).rglob("*.yaml")]
    others = [Path(other) for other in FOLDERS.values() if other != "." and kind == "recipe"]
    return sorted(path.with_suffix("").as_posix() for path in found if not any(map(path.is_relative_to, others)))


def data_folder(name: str) -> Path:
    """The folder ``recipes``, ``data_manifests`` or ``model_manifests``, in an installed package or at the top of
    a source checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def _folder(kind: str) -> Path:
    return data_folder("recipes") / FOLDERS[kind]


def _find(kind: str, name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise HrsegError(f"`{kind}` {name}: no such file; give an existing YAML file or the name of a {kind}")
        return path
    path = _folder(kind) / f"{name}.yaml"
    if not path.is_file():
        raise UnknownName(kind, name, names(kind), "You can also give the path of a YAML file.")
    return path


def _read_extended(path: Path, kind: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise HrsegError(f"{path}: 'extends' forms a cycle; remove one of them")
    try:
        settings = read_yaml(path)
    except (OSError, Malformed) as error:
        raise HrsegError(f"{path}: cannot be read as YAML ({reason(error)}); fix the file") from None
    if not isinstance(settings, dict):
        raise HrsegError(f"{path}: must contain 'key: value' lines")
    base = settings.pop("extends", None)
    if base is None:
        return settings
    sibling = path.parent / f"{base}.yaml"
    parent = sibling if sibling.is_file() else _find(kind, str(base))
    return _merge(_read_extended(parent, kind, (*seen, path.resolve())), settings)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        # Options belong to the name next to them; those of another adapter or loss would be wrong here.
        if isinstance(old, dict) and isinstance(value, dict) and key != "options":
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _set(settings: dict[str, Any], change: str, example: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise HrsegError(f"`changes` {change}: write key=value, for example `changes` {example}")
    *path, leaf = key.strip().split(".")
    if len(path) > SETTINGS.nesting:
        raise HrsegError(f"`changes` {shown(change)}: nested too deeply; write key=value, for example {example}")
    place = settings
    for part in path:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    try:
        place[leaf] = parse_yaml(text)
    except Malformed as error:
        raise HrsegError(f"`changes` {key}={shown(text)}: the value is not valid YAML ({error})") from None


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """Pydantic's first error in one line."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"'{place}' is missing"
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        what = f"{place}: " if place else ""
        got = f" (got {shown(first['input'])})" if place else ""
        return f"{what}{message[0].lower()}{message[1:]}{got}"
    known = [*_below(model, first["loc"][:-1]).model_fields]
    guess = nearest(str(first["loc"][-1]), known)
    return f"unknown key '{place}'" + (f"; did you mean '{guess}'?" if guess else f"; known: {', '.join(known)}")


def _below(model: type[BaseModel], place: Iterable[int | str]) -> type[BaseModel]:
    """The settings nested at ``place``."""
    for part in place:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Settings classes in the type of a field, such as ``ZoomIn | None`` or ``list[Part]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
