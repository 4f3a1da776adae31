"""Damaged files of every kind, from seeded mutators: each ends in exit 0, 1 or 2 and one line, quickly, in little
memory, and touches nothing outside its folder.

A child process per kind runs the inputs one after the other, so that a crash, an endless loop or a memory bomb ends the
child and not the tests. A failure prints kind and seed; ``FUZZ=kind:seed`` runs one input alone.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hrseg_cli import cli
from hrseg_cli.checkpoints.adapters import read_adapter
from hrseg_cli.checkpoints.formats import read_checkpoint
from hrseg_cli.data.manifest import load_manifest
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import load_protocol, load_recipe

MEMORY = 1 << 30  # bytes that one input may take
SECONDS = 20

Files = dict[str, bytes]
Words = list[str]

# ---- sound files of each kind ----------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "\x00", "../../escaped", "/e",
    "é\ud800", "x" * 5000, [], {}, [[]], [None], {"a": None}, "1", 0.5, [[[[[[[[1]]]]]]]],
]  # fmt: skip
TOKENS = [
    b"[" * 100, b"{", b"}", b'"', b"\\", b"\x00", b"\xff\xfe", b"NaN", b"1e999", b"9" * 40, b"9" * 5000, b"-", b":",
    b"\n", b"\r", b"&a [*a]", b"!!binary x", b"!!int y", b"<<: *a", b"../../escaped", b"\xed\xa0\x80", b"- - - - ",
]  # fmt: skip


def picture(kind: str, mode: str, random_: random.Random) -> bytes:
    values = np.zeros((16, 20), np.uint8)
    values[4:12, 5:15] = 255
    values[0, : random_.randrange(1, 20)] = 1 if mode == "P" else 255
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([0, 0, 0, 128, 0, 0] + [9] * 762)
    file = io.BytesIO()
    (image if mode == "P" else image.convert(mode)).save(file, kind)
    return file.getvalue()


def images(r: random.Random) -> tuple[Files, str, Words]:
    kind = r.choice(["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM"])
    mode = "P" if kind == "GIF" else r.choice(["L", "RGB"])
    name = f"d/images/a.{kind.lower()}"
    return {name: picture(kind, mode, r), "d/masks/a.png": picture("PNG", "L", r)}, name, ["prepare-data", "d"]


def masks(r: random.Random) -> tuple[Files, str, Words]:
    kind, mode = r.choice([("PNG", "L"), ("PNG", "P"), ("PNG", "1"), ("TIFF", "I;16"), ("BMP", "L"), ("PNG", "RGBA")])
    name = f"d/masks/a.{kind.lower()}"
    words = ["prepare-data", "d", *r.choice([[], ["--instances"]])]
    return {"d/images/a.png": picture("PNG", "RGB", r), name: picture(kind, mode, r)}, name, words


PREDICT = ["predict", "a.png", "--model", "grabcut", "--protocol", "plain", "--out", "o", "--clicks"]
TRACE = {
    "id": "a", "dataset": "d", "clicks": [[6, 8, 1], [1, 1, 0]], "iou": [0.5, 0.9], "seconds": [0.1, 0.1],
    "until": {"iou": 0.9}, "size": [16, 20], "area": 80, "rule": "gt128", "notes": {},
}  # fmt: skip


def clicks(r: random.Random) -> tuple[Files, str, Words]:
    name, text = r.choice(
        [
            ("c.json", '{"a.png": {"left": [[6, 8, 1], [1, 1, 0]], "right": [[7, 9]]}}'),
            ("c.json", '{"a.png": [[6, 8, 1]]}'),
            ("c.csv", "image,row,col,positive,object\na.png,6,8,1,left\na.png,1,1,0,left\n"),
        ]
    )
    return {"a.png": picture("PNG", "RGB", r), name: text.encode()}, name, [*PREDICT, name]


def traces(r: random.Random) -> tuple[Files, str, Words]:
    text = (json.dumps(TRACE) + "\n").encode()
    return {"a.png": picture("PNG", "RGB", r), "t.jsonl": text}, "t.jsonl", [*PREDICT, "t.jsonl"]


def coco(r: random.Random) -> tuple[Files, str, Words]:
    shapes = [[[2, 2, 12, 2, 12, 9]], {"size": [16, 20], "counts": [3, 9, 308]}, {"size": [16, 20], "counts": "XX1"}]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 16, "width": 20}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "segmentation": shape, "iscrowd": 0}
            for k, shape in enumerate(shapes)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    return (
        {"a.png": picture("PNG", "RGB", r), "c.json": json.dumps(content).encode()},
        "c.json",
        ["prepare-data", "c.json"],
    )


def labelme(r: random.Random) -> tuple[Files, str, Words]:
    mask = base64.b64encode(picture("PNG", "L", r)).decode()
    shapes = [
        {"label": "cat", "points": [[2, 2], [12, 2], [12, 9]], "group_id": 1, "shape_type": "polygon", "flags": {}},
        {"label": "cat", "points": [[5, 5], [8, 5]], "group_id": None, "shape_type": "circle", "flags": {}},
        {"label": "dog", "points": [[0, 0], [19, 15]], "group_id": 1, "shape_type": "mask", "flags": {}, "mask": mask},
    ]
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None}
    files = {"d/a.png": picture("PNG", "RGB", r), "d/a.json": json.dumps(content).encode()}
    return files, "d/a.json", ["prepare-data", "labelme=d"]


def matlab(r: random.Random) -> tuple[Files, str, Words]:
    from scipy.io import savemat

    file = io.BytesIO()
    ids = np.zeros((16, 20), np.uint8)
    ids[4:12, 5:15] = 1
    savemat(file, {"GTinst": {"Segmentation": ids}}, do_compression=r.random() < 0.5)
    files = {"d/img/a.png": picture("PNG", "RGB", r), "d/inst/a.mat": file.getvalue(), "d/val.txt": b"a\n"}
    return files, "d/inst/a.mat", ["prepare-data", "sbd=d"]


def pairs(r: random.Random) -> tuple[Files, str, Words]:
    files = {"d/a.png": picture("PNG", "RGB", r), "d/m.png": picture("PNG", "L", r)}
    return {**files, "d/pairs.csv": b"image,mask,kind\na.png,m.png,\n"}, "d/pairs.csv", ["prepare-data", "d"]


SETTINGS = {
    "model": {"name": "grabcut", "file": ""}, "metrics": ["iou"], "until": {"iou": 0.9}, "max_clicks": 2, "seed": 0,
    "protocol": {"name": "plain"}, "datasets": ["d"],
}  # fmt: skip
RECORD = {
    "asked": {"command": "evaluate", "argv": [], "settings": SETTINGS},
    "got": {"status": "done", "seconds": 1.0, "summary": {"rows": [{"dataset": "d", "metric": "iou", "n": 1}]}},
    "where": {"commit": "abc", "dirty": False, "versions": {}, "machine": "x"},
}
MASK = {
    "id": "a", "dataset": "d", "image": "a.png", "draw": None, "range": None, "size": [16, 20], "truth": "h3`4",
    "void": None, "masks": {"1": "h3`4", "2": "P:"},
}  # fmt: skip


def run_folders(r: random.Random) -> tuple[Files, str, Words]:
    files = {"run.json": RECORD, "traces.jsonl": TRACE, "masks.jsonl": MASK}
    name = f"r/{r.choice(list(files))}"
    words = ["report", "r", *(["--pictures", "p.png"] if "masks" in name else [])]
    return {f"r/{key}": (json.dumps(one) + "\n").encode() for key, one in files.items()}, name, words


def submissions(r: random.Random) -> tuple[Files, str, Words]:
    asked = {**RECORD["asked"], "settings": {**SETTINGS, "submission": True}}
    runs = "a2h0g6"  # 81 pixels of background, 24 of the object, and the rest
    masks = {**MASK, "truth": runs, "initial": runs, "image_sha256": "0", "masks": {"1": runs, "2": runs}}
    files = {"run.json": {**RECORD, "asked": asked}, "traces.jsonl": TRACE, "masks.jsonl": masks}
    name = r.choice(list(files))
    return {key: (json.dumps(one) + "\n").encode() for key, one in files.items()}, name, ["report", "--verify", "."]


PROTOCOL = "name: x\nextends: ritm\nzoom: {target: 600, expansion: 1.2}\nthreshold: 0.5\nmax_clicks: 3\n"
RECIPE = (
    "name: x\nextends: tiny_procedural\ndata:\n  crop: [64, 64]\n  augment: {scale: [0.5, 1.5]}\nclicks: {rounds: 1}\n"
)
MANIFEST = """name: x
version: 1
title: t
licence: l
terms: t
citation: c
sources: [s]
files: [{name: a.zip, urls: ['http://127.0.0.1:9/a.zip'], unpack: zip, into: mine}]
splits: {val: {folder: mine, layout: pairs, images: 'im/*.jpg', masks: 'gt/*.png', count_images: 1, count_objects: 1}}
"""


def yaml(r: random.Random) -> tuple[Files, str, Words]:
    kind, text = r.choice([("protocol", PROTOCOL), ("recipe", RECIPE), ("manifest", MANIFEST)])
    return {"x.yaml": text.encode()}, "x.yaml", [f"load {kind}"]


def safetensors(r: random.Random) -> tuple[Files, str, Words]:
    own = {"kind": r.choice(["model", "adapter"]), "format": 1, "name": r.choice(["grabcut", "lora"]), "options": {}}
    own |= {"provenance": {"base": "b"}, "base": "b"}
    header: dict[str, Any] = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    blob = json.dumps({**header, "__metadata__": {"hrseg": json.dumps(mutated_value(own, r))}}).encode()
    return {"m.safetensors": struct.pack("<Q", len(blob)) + blob + bytes(8)}, "m.safetensors", ["load weights"]


def onnx(r: random.Random) -> tuple[Files, str, Words]:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("image", "logits")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["logits"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph)
    own = {"format": 1, "name": "x", "options": {}, "provenance": {}, "precision": "fp32", "with_prev_mask": True}
    own |= {"mirror": True, "enlarge": 1}
    helper.set_model_props(model, {"hrseg": json.dumps(mutated_value(own, r))})
    return {"m.onnx": model.SerializeToString()}, "m.onnx", ["load graph"]


KINDS: dict[str, Callable[[random.Random], tuple[Files, str, Words]]] = {
    one.__name__: one
    for one in (
        images,
        masks,
        clicks,
        traces,
        coco,
        labelme,
        matlab,
        pairs,
        run_folders,
        submissions,
        yaml,
        safetensors,
        onnx,
    )
}

# ---- mutators --------------------------------------------------------------------------------------------------------


def mutated_value(value: Any, r: random.Random) -> Any:
    """A JSON value with one inner value replaced, removed or repeated."""
    if isinstance(value, dict) and value and r.random() < 0.8:
        key = r.choice(list(value))
        if r.random() < 0.1:
            return {other: its for other, its in value.items() if other != key}
        return {**value, key: mutated_value(value[key], r)}
    if isinstance(value, list) and value and r.random() < 0.8:
        place = r.randrange(len(value))
        if r.random() < 0.1:
            return value[:place] + value[place:] * 3
        return [*value[:place], mutated_value(value[place], r), *value[place + 1 :]]
    return r.choice(ODD)


def mutated(data: bytes, r: random.Random) -> bytes:
    """The bytes after one to four changes; JSON half of the time as a value."""
    if r.random() < 0.5:
        with contextlib.suppress(ValueError):
            return json.dumps(mutated_value(json.loads(data), r)).encode() + b"\n"
    for _ in range(r.randint(1, 4)):
        start, end = sorted(r.randrange(len(data) + 1) for _ in range(2))
        match r.randrange(6):
            case 0:
                data = data[:start]
            case 1:
                data = data[:start] + data[end:]
            case 2:
                data = data[:end] + data[start:end] * r.choice([1, 50]) + data[end:]
            case 3:
                data = data[:start] + r.choice(TOKENS) + data[start:]
            case 4:
                data = data[:start] + r.randbytes(min(8, len(data) - start)) + data[start + 8 :]
            case _:
                data = (
                    data[:start] + bytes(b ^ (1 << r.randrange(8)) for b in data[start : start + 1]) + data[start + 1 :]
                )
    return data


# ---- running ---------------------------------------------------------------------------------------------------------


def perform(words: Words) -> tuple[int, str]:
    """Exit code and stderr of a command, or of a loader, in this process."""
    loaders: dict[str, Callable[[], Any]] = {
        "load protocol": lambda: load_protocol("x.yaml"),
        "load recipe": lambda: load_recipe("x.yaml"),
        "load manifest": lambda: load_manifest("x", Path()),
        "load weights": lambda: (read_adapter(Path("m.safetensors")), read_checkpoint(Path("m.safetensors"))),
        "load graph": _load_graph,
    }
    if words[0] in loaders:
        try:
            loaders[words[0]]()
        except HrsegError as error:
            return 1, f"hrseg: {error}\n"
        return 0, ""
    sys.argv = ["hrseg", *words]
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    return int(code or 0), err.getvalue()


def _load_graph() -> None:
    from hrseg_cli.engine.runtimes import open_model

    open_model("m.onnx")


def verdict(kind: str, seed: int, place: Path) -> str:
    """What is wrong with how one input ends, "" if nothing."""
    r = random.Random(f"{kind} {seed}")
    files, name, words = KINDS[kind](r)
    files[name] = mutated(files[name], r)
    inside = place / "inner" / "work"
    inside.mkdir(parents=True)
    for path, data in files.items():
        (inside / path).parent.mkdir(parents=True, exist_ok=True)
        (inside / path).write_bytes(data)
    os.chdir(inside)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = peak()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # kills the child
    try:
        code, err = perform(words)
    except Exception as error:
        code, err = 99, f"{type(error).__name__}: {error}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    told = "" if kind == "submissions" else "hrseg: "  # problems of a sound file are listed without
    lines = [line for line in err.splitlines() if line.startswith(told)]
    why = {
        f"exit {code}": code not in (0, 1, 2),
        "a traceback or defect": "Traceback" in err or "a defect of hrseg" in err,
        "no line, or many": code == 1 and not 1 <= len(lines) <= 6,
        "a long message": len(err) > 20_000,
        f"{(peak() - before) >> 20} MB": peak() - before > MEMORY,
        "files outside": sorted(place.iterdir()) != [place / "inner"] or len(list((place / "inner").iterdir())) > 1,
    }
    return (
        ", ".join(text for text, wrong in why.items() if wrong)
        and f"{', '.join(t for t, w in why.items() if w)}: {err}"
    )


def peak() -> int:
    """Bytes of memory at the most, since it was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def run_kind(kind: str, seeds: range, place: Path) -> list[str]:
    """Failures of a kind, with their seeds. A child does the work; a new one continues after one that died."""
    failures: list[str] = []
    left = list(seeds)
    log = place / "log"
    while left:
        log.write_text("")
        pid = os.fork()
        if not pid:
            with log.open("a") as file:
                limit = resource.getrlimit(resource.RLIMIT_AS)[1]
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + 3 * MEMORY, limit))
                with warnings.catch_warnings(action="ignore"), open(os.devnull, "w") as null:
                    os.dup2(null.fileno(), 2)
                    for seed in left:
                        print(f"{seed} ", end="", file=file, flush=True)
                        print(json.dumps(verdict(kind, seed, place / str(seed))), file=file, flush=True)
                        os.chdir(place)
                        shutil.rmtree(place / str(seed))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        lines = log.read_text().splitlines()
        done = [line.partition(" ") for line in lines]
        failures += [f"{kind}:{seed}: {json.loads(text)}" for seed, _, text in done if text and json.loads(text)]
        if status:
            seed = int(done[-1][0]) if done else left[0]
            failures.append(f"{kind}:{seed}: the process ended with {os.waitstatus_to_exitcode(status)}")
            left = left[left.index(seed) + 1 :]
        else:
            left = []
    return failures


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_damaged_files_end_in_one_line(kind: str, tmp_path: Path) -> None:
    assert run_kind(kind, range(4), tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_end_in_one_line(kind: str, tmp_path: Path) -> None:
    """2,860 in all. FUZZ=kind:seed runs one."""
    only, _, seed = os.environ.get("FUZZ", "").partition(":")
    if only not in ("", kind):
        pytest.skip("another kind was asked for")
    seeds = range(int(seed), int(seed) + 1) if seed else range(1000, 1220)
    assert run_kind(kind, seeds, tmp_path) == []
