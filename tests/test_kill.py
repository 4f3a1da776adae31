"""Killed outright at random moments and run again, each command leaves what an uninterrupted run leaves, and no litter.

HRSEG_KILLS=50 kills each command fifty times.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.data.masks_out import run_lengths
from hrseg_cli.models.hrnet import h18s
from hrseg_cli.training.logs import _records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

KILLS = int(os.environ.get("HRSEG_KILLS", "5"))
TRAINING = [
    "--workers", "1", "--set", "data.epoch=4", "--set", "batch=2", "--set", "epochs=2", "--set", "data.crop=[32,32]",
    "--set", "data.parts=[{dataset: 'procedural:count=2,size=64,seed=7'}]", "--set", "validation.max_clicks=1",
    "--set", "validation.datasets=['procedural:count=1,size=64,seed=8']", "--set", "validation.every=1",
    "--set", "optim.name=sgd", "--out", "out",
]  # fmt: skip


class Forked:
    """The process that forks, see forked.py."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        script = str(Path(__file__).with_name("forked.py"))
        self.child = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, words: list[str], cwd: Path, folder: Path, moment: int = 0, delay: float = 0.0) -> int:
        """The process."""
        asked = {"words": words, "cwd": str(cwd), "folder": str(folder), "moment": moment, "delay": delay}
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(asked) + "\n")
        self.child.stdin.flush()
        return self.answer()

    def answer(self) -> int:
        assert self.child.stdout is not None
        return int(self.child.stdout.readline())

    def run(self, words: list[str], cwd: Path, moment: int = 0, delay: float = 0.0) -> bool:
        """Whether it was killed; anything else than that and success is an error."""
        self.start(words, cwd, cwd / "out", moment, delay)
        code = self.answer()
        assert code in (0, -signal.SIGKILL), (cwd / "err.txt").read_text()
        return code != 0


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    made = Forked()
    with made.child:
        yield made
        assert made.child.stdin is not None
        made.child.stdin.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of a bright rectangle."""
    folder = tmp_path_factory.mktemp("data") / "boxes"
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for k in range(5):
        image, mask = rng.integers(0, 90, (48, 64, 3), dtype=np.uint8), np.zeros((48, 64), np.uint8)
        mask[8 + k : 36, 10 : 40 + k] = 255
        image[mask > 0] += 140
        Image.fromarray(image).save(folder / "images" / f"{k}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{k}.png")
    return folder


def left(folder: Path) -> dict[str, Any]:
    """Everything in a folder, but for times and what must differ: file -> contents."""
    return dict(read(path, folder) for path in sorted(folder.rglob("*")) if path.is_file())


def read(path: Path, folder: Path) -> tuple[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.suffix == ".ckpt":
        return name, plain(torch.load(path, weights_only=True))
    if "tfevents" in name:
        return "log/events", events(path.read_bytes())
    if path.suffix in (".json", ".jsonl"):
        text = re.sub(r'"seconds": ?[0-9.]+', '"seconds": 0', path.read_text())
        return name, re.sub(r'"\d+ \d{16,}"', '"stamp"', text)
    return name, path.read_bytes()


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def events(data: bytes) -> list[Any]:
    from tensorboard.compat.proto.event_pb2 import Event

    found = (Event.FromString(record[12:-4]) for record in _records(data))
    return [(event.step, [(one.tag, one.simple_value) for one in event.summary.value]) for event in found]


def kill_and_compare(forked: Forked, words: list[str], place: Path, begin: Callable[[Path], object]) -> None:
    """begin: puts into a new folder what is there before the command."""
    chance = random.Random(words[0])
    (place / "whole").mkdir()
    begin(place / "whole")
    assert not forked.run(words, place / "whole")
    whole, most = left(place / "whole" / "out"), int((place / "whole" / "moments").read_text())
    killed, chain = 0, 0
    cwd = place / "killed"
    while killed < KILLS or chain:
        if not chain:
            shutil.rmtree(cwd, ignore_errors=True)
            cwd.mkdir()
            begin(cwd)
        last = killed >= KILLS or chain >= 6  # then it may end
        moment = 0 if last else chance.randrange(1, max(2, most // (1 + chain)))
        died = forked.run(words, cwd, moment, chance.choice([0, 0, chance.random() * 0.02, chance.random() * 0.3]))
        killed += died
        chain += 1
        if not died:
            now = left(cwd / "out")
            assert now.keys() == whole.keys(), (killed, chain)
            for name in whole:
                assert now[name] == whole[name], (name, killed, chain)
            chain = 0
    print(f"{words[0]}: killed {killed} times, {most} moments")


def test_evaluate(forked: Forked, photos: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--model", "grabcut", "-d", str(photos), "--protocol", "plain", "--max-clicks", "3"]
    kill_and_compare(forked, [*words, "--workers", "2", "--keep-masks", "--out", "out"], tmp_path, lambda _: None)


def test_predict_again_with_other_clicks_and_formats(forked: Forked, photos: Path, tmp_path: Path) -> None:
    """Files of before are replaced, and those of a format that is no longer asked for removed."""
    for name, row in (("before", 10), ("after", 24)):
        (tmp_path / f"{name}.json").write_text(json.dumps({f"{k}.png": [[row, 30, 1]] for k in range(5)}))
    words = ["predict", str(photos / "images"), "--model", "grabcut", "--protocol", "plain", "--out", "out", "--clicks"]
    first = [*words, str(tmp_path / "before.json"), "--format", "soft", "--format", "cutout"]
    second = [*words, str(tmp_path / "after.json"), "--format", "png", "--format", "rle"]
    for name in ("new", "again"):
        (tmp_path / name).mkdir()
    kill_and_compare(forked, first, tmp_path / "new", lambda _: None)
    kill_and_compare(forked, second, tmp_path / "again", lambda cwd: forked.run(first, cwd))


def test_refine_a_coco_file_again_with_other_options(forked: Forked, photos: Path, tmp_path: Path) -> None:
    """Polygons and run lengths, two objects an image; the file is written last, from the records of its images."""
    listed, annotations = [], []
    for k in range(5):
        mask = np.roll(np.array(Image.open(photos / "masks" / f"{k}.png")) > 0, 3, 1)
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, left, bottom, right = (float(end) for end in (rows[0], cols[0], rows[-1] + 1, cols[-1] + 1))
        about = {"image_id": k, "category_id": 1, "area": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0}
        listed.append({"id": k, "file_name": f"{k}.png", "height": 48, "width": 64})
        for shape in ([[left, top, right, top, right, bottom, left, bottom]], run_lengths(mask)):
            annotations.append({"id": len(annotations), **about, "segmentation": shape})
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": [{"id": 1}]}))
    words = ["refine", str(photos / "images"), "--masks", str(labels), "--out", "out", "--truth", str(labels)]
    first, second = [*words, "--set", "radius=4"], [*words, "--set", "radius=8"]
    for name in ("new", "again"):
        (tmp_path / name).mkdir()
    kill_and_compare(forked, first, tmp_path / "new", lambda _: None)
    kill_and_compare(forked, second, tmp_path / "again", lambda cwd: forked.run(first, cwd))


def test_draw(forked: Forked, tmp_path: Path) -> None:
    words = ["prepare-data", "procedural", "--count", "4", "--size", "64", "--out", "out"]
    kill_and_compare(forked, words, tmp_path, lambda _: None)


def test_copies(forked: Forked, photos: Path, tmp_path: Path) -> None:
    words = ["prepare-data", "out/boxes", "--cache-longest", "64"]
    kill_and_compare(forked, words, tmp_path, lambda cwd: shutil.copytree(photos, cwd / "out" / "boxes"))


def test_train(forked: Forked, tmp_path: Path) -> None:
    kill_and_compare(forked, ["train", "--recipe", "tiny_procedural", *TRAINING], tmp_path, lambda _: None)


def test_adapt(forked: Forked, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint(h18s(), tmp_path / "base.safetensors", {})
    words = ["adapt", "--from", str(tmp_path / "base.safetensors"), "--adapter", "lora", *TRAINING]
    kill_and_compare(forked, words, tmp_path, lambda _: None)


# ---- annotate --------------------------------------------------------------------------------------------------------

ACTIONS: list[tuple[int, dict[str, Any]]] = [
    (0, {"do": "click", "row": 20, "col": 20, "object": None}),
    (0, {"do": "click", "row": 2, "col": 2, "positive": False, "object": "0_0"}),
    (1, {"do": "click", "row": 40, "col": 50, "object": "1"}),
    (1, {"do": "rename", "object": "1", "name": "box"}),
    (0, {"do": "undo", "object": "0_0"}),
    (0, {"do": "stroke", "object": "0_0", "points": [[30, 30]], "radius": 2000, "positive": False}),
    (0, {"do": "add"}),
    (0, {"do": "stroke", "object": "0_1", "points": [[5, 5], [9, 9]], "radius": 3}),
    (1, {"do": "delete", "object": "1"}),
    (0, {"do": "undo", "object": "0_0"}),
    (0, {"do": "rename", "object": "0_1", "name": "line"}),
    (0, {"do": "finish", "finished": True}),
]


class Page:
    """A server and what the page would ask it."""

    def __init__(self, forked: Forked, cwd: Path, moment: int, delay: float) -> None:
        self.forked, self.cwd = forked, cwd
        (cwd / "err.txt").unlink(missing_ok=True)
        words = ["annotate", "out", "--model", "grabcut", "--protocol", "plain", "--port", "0", "--no-browser"]
        self.pid = forked.start(words, cwd, cwd / "out", moment, delay)
        self.port, self.token = 0, ""
        for _ in range(2000):
            found = (cwd / "err.txt").exists() and re.search(r":(\d+)/#(\S+)\n", (cwd / "err.txt").read_text())
            if found:
                self.port, self.token = int(found[1]), found[2]
                break
            if not Path(f"/proc/{self.pid}").exists():
                break
            time.sleep(0.01)

    def ask(self, number: int, wish: dict[str, Any] | None = None) -> Any:
        """None where the server has died."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            line.request(
                "POST" if wish else "GET", f"/api/images/{number}", json.dumps(wish) if wish else None, headers
            )
            answer = line.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            line.close()
        if answer.status != 200:
            self.end()
            raise AssertionError(text)
        return json.loads(text)

    def end(self) -> int:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        return self.forked.answer()


def work(forked: Forked, cwd: Path, kills: int, chance: random.Random) -> int:
    """All actions, in as many servers as it takes; how often one was killed."""

    def server() -> Page:
        kill = killed < kills
        return Page(forked, cwd, chance.randrange(1, 60) if kill else 0, chance.choice([0, 0, chance.random() * 0.02]))

    killed, place = 0, 0
    page = server()
    revisions = {0: 0, 1: 0}
    while True:
        wish = ACTIONS[place] if place < len(ACTIONS) else None
        shown = page.ask(wish[0] if wish else 0)
        if shown and wish and shown["revision"] == revisions[wish[0]] + 1:  # died between doing and answering
            revisions[wish[0]] += 1
            place += 1
            continue
        if shown and wish and page.ask(wish[0], {**wish[1], "revision": shown["revision"]}):
            revisions[wish[0]] += 1
            place += 1
        elif shown and not wish:
            code = page.end()
            killed += code == -signal.SIGKILL
            if code == 0:
                return killed
            page = server()
        else:
            code = page.end()
            assert code == -signal.SIGKILL, (cwd / "err.txt").read_text()
            killed += 1
            page = server()


@pytest.mark.parametrize("flat", [False, True])
def test_annotate(forked: Forked, photos: Path, tmp_path: Path, flat: bool) -> None:
    def begin(cwd: Path) -> Path:
        shutil.rmtree(cwd, ignore_errors=True)
        images = cwd / "out" if flat else cwd / "out" / "images"
        for k in range(2):
            images.mkdir(parents=True, exist_ok=True)
            shutil.copy2(photos / "images" / f"{k}.png", images)
        (cwd / "out" / "masks").mkdir()
        shutil.copy2(photos / "masks" / "1.png", cwd / "out" / "masks")
        return cwd

    chance = random.Random(int(flat))
    work(forked, begin(tmp_path / "whole"), 0, chance)
    whole = left(tmp_path / "whole" / "out")
    killed = 0
    while killed < KILLS // 2 + 1:
        cwd = begin(tmp_path / "killed")
        killed += work(forked, cwd, min(8, KILLS // 2 + 1 - killed), chance)
        now = left(cwd / "out")
        assert now.keys() == whole.keys(), killed
        for name in whole:
            assert now[name] == whole[name], (name, killed)
    print(f"annotate: killed {killed} times")
