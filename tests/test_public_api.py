"""What ``import hrseg_cli`` promises: light, complete, documented, and its errors in the caller's terms."""

from __future__ import annotations

import ast
import functools
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main

import hrseg_cli
from hrseg_cli.cli import app
from hrseg_cli.commands.options import FLAGS, with_flags

PACKAGE = Path(hrseg_cli.__file__).resolve().parent
FUNCTIONS = ["adapt", "evaluate", "load", "over_groups", "predict", "refine", "tables", "train", "verify"]
CLASSES = [
    "Click",
    "HrsegError",
    "Model",
    "Prediction",
    "Refined",
    "Result",
    "Session",
    "Trace",
    "Trained",
    "UnknownName",
]


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, hrseg_cli as hrseg\n"
        "assert set(hrseg.__all__) <= set(dir(hrseg)), hrseg.__all__\n"
        "assert not {'Any', 'TYPE_CHECKING'} & set(dir(hrseg))\n"
        "hrseg.Click(1, 2, True), hrseg.HrsegError\n"
        "heavy = {'torch', 'numpy', 'pandas', 'cv2', 'PIL', 'pydantic', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not hasattr(hrseg, 'nonsense')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_submodule_takes_the_place_of_a_public_name() -> None:
    """A module once imported becomes an attribute of its package: hrseg_cli.report would hide a function "report"."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "hrseg_cli."):
        import_module(module.name)
        assert module.name.removeprefix("hrseg_cli.") not in hrseg_cli.__all__
    for name in FUNCTIONS:
        assert inspect.isfunction(getattr(hrseg_cli, name)), name
    for name in CLASSES:
        assert inspect.isclass(getattr(hrseg_cli, name)), name
    assert sorted(hrseg_cli.__all__) == sorted([*FUNCTIONS, *CLASSES, "__version__"])
    assert (PACKAGE / "py.typed").is_file()


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in FUNCTIONS:
        yield name, getattr(hrseg_cli, name)
    for owner in (hrseg_cli.Model, hrseg_cli.Session):
        for name, member in inspect.getmembers(owner, inspect.isfunction):
            if not name.startswith("_"):
                yield f"{owner.__name__}.{name}", member


def test_every_parameter_is_documented() -> None:
    missing = [
        f"{name}: {parameter}"
        for name, function in public()
        for parameter in inspect.signature(function).parameters
        if parameter != "self" and not re.search(rf"\b{parameter}\b", inspect.getdoc(function) or "")
    ]
    assert not missing


# Errors


@functools.cache
def messages() -> list[tuple[Path, str]]:
    """The texts in the library's code, docstrings and what it tells users to type as a command left out."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in ("commands", "cli.py", "recipes"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        whole = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        left_out |= {id(part) for node in whole for part in ast.walk(node) if part is not node}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
                text = node.value
            else:
                continue
            found.append((path, re.sub("'hrseg [^']*'", "", text)))
    return found


def test_the_library_names_parameters_and_never_flags() -> None:
    git = {"--porcelain", "--untracked-files=no"}
    found = [f"{path}: {text}" for path, text in messages() if re.search(r"(^|\W)--[a-z{]", text) and text not in git]
    assert not found, "write `parameter` instead"


def test_every_parameter_that_a_message_names_has_a_flag() -> None:
    """But for the arguments of Python calls that have none, because the command takes them otherwise."""
    python_only = {"image", "images", "keep_masks", "max_undo", "positive", "row", "col", "recipe", "adapter"}
    options = {
        option
        for command in typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
    }
    named = {name for _, text in messages() for name in re.findall(r"`([a-z_]+)`", text)}
    assert {"out", "model", "device", "metrics"} <= named, "the messages are not found any more"
    assert {with_flags(f"`{name}`") for name in named - python_only} <= options
    assert set(FLAGS.values()) <= options


def test_one_error_in_both_terms(hrseg: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(hrseg_cli.HrsegError, match=r"^`model` gone/x\.pth: no such file"):
        hrseg_cli.load("gone/x.pth")
    done = hrseg("predict", tmp_path, "-m", "gone/x.pth", "--click", "1,1")
    assert done.code == 1
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(hrseg_cli.HrsegError, match=r"^`out` .*taken: not empty"):
        hrseg_cli.evaluate("grabcut", "procedural:count=1,size=64", out=tmp_path / "taken", max_clicks=1)
    words = ["evaluate", "-m", "grabcut", "-d", "procedural:count=1,size=64", "--max-clicks", "1", "--workers", "1"]
    done = hrseg(*words, "--out", tmp_path / "taken")
    assert (done.code, done.err.splitlines()[-1]) == (
        1,
        f"hrseg: --out {tmp_path / 'taken'}: not empty and not a run folder; use another folder",
    )
