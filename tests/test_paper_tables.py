"""recipes/paper/tables.sh from nothing to the tables: interrupted, gone on with, and with nothing left to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference import deterministic_weights

from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.data.samples import split_options
from hrseg_cli.models.hrnet import h18s
from hrseg_cli.recipe import data_folder, load_recipe

SCRIPT = data_folder("recipes") / "paper" / "tables.sh"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, a base, a choice of data that takes seconds, and a hrseg that counts its calls."""
    home = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (home / "boxes" / kind).mkdir(parents=True)
    for k in range(6):
        mask = np.zeros((64, 64), np.uint8)
        mask[10 + k : 50, 20 : 50 + k] = 255
        image = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
        image[mask > 0] += 140
        Image.fromarray(image).save(home / "boxes" / "images" / f"{k}.png")
        Image.fromarray(mask).save(home / "boxes" / "masks" / f"{k}.png")
    model = h18s()
    model.load_state_dict(deterministic_weights(model.state_dict()))
    save_checkpoint(model, home / "base.safetensors", {})
    (home / "tiny.env").write_text(
        f"prepare() {{ mkdir -p {home}/made; cp -pR {home}/boxes/. {home}/made; }}\n"
        f"BASE={home}/base.safetensors\n"
        f"TRAIN_REGULAR='[{{dataset: {home}/boxes}}]'\n"
        f"TRAIN_HIGH='[{{dataset: {home}/boxes, weight: 2.0}}]'\n"
        f"TEST_REGULAR=regular={home}/boxes\nTEST_HIGH=high={home}/made\n"
        "CHANGES='data.crop=[32,32] data.epoch=2 batch=2 epochs=1 data.min_area=20 clicks.rounds=0 data.held_out=0.3\n"
        "    optim.warmup=0 validation.objects=1 validation.max_clicks=1'\n"
        "CHANGES_CONV='data.crop=[32,64]'\nTRAIN_ON='--workers 0 --logger csv'\n"
        "EVALUATE='--limit 1 --max-clicks 1 --protocol plain'\nEVALUATE_ON='--workers 1'\n"
    )
    (home / "hrseg").write_text(
        "#!/bin/sh\n"
        f'echo "$*" >>{home}/calls\n'
        f'[ "$(wc -l <{home}/calls)" != 4 ] || exit 130\n'  # as if Ctrl-C
        f'exec {sys.executable} -m hrseg_cli.cli "$@"\n'
    )
    (home / "hrseg").chmod(0o755)
    return home


def tables(home: Path, *, rows: str = "base t4_conv", data: str = "tiny.env") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{home}:{os.environ['PATH']}", "ROWS": rows, "SEEDS": "7", "OUT": "out"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[2])
    return subprocess.run([SCRIPT, data], cwd=home, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_from_nothing_to_the_tables(home: Path) -> None:
    first = tables(home)
    assert first.returncode == 130, first.stderr
    trained = home / "out" / "t4_conv" / "7" / "train"
    before = (trained / "best.safetensors").read_bytes()
    second = tables(home)
    assert second.returncode == 0, second.stderr
    third = tables(home)
    assert third.returncode == 0, third.stderr

    calls = [line.split()[0] for line in (home / "calls").read_text().splitlines()]
    assert calls[:4] == ["evaluate", "evaluate", "adapt", "evaluate"]  # the last one was stopped
    assert calls[4:] == ["evaluate", "evaluate", "report", "report", "report", "report"]
    assert (trained / "best.safetensors").read_bytes() == before

    recipe = json.loads((trained / "run.json").read_text())["asked"]["settings"]["recipe"]
    assert recipe["seed"] == 7
    assert recipe["data"]["crop"] == [32, 64]
    assert recipe["data"]["parts"][0]["weight"] is None  # the regular data
    assert recipe["adapter"] == load_recipe("paper/t4_conv").model_dump(mode="json")["adapter"]
    text = (home / "out" / "tables.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| + conv "))
    assert line.split("|")[3].strip() == "32 × 64"
    assert "**1.00** [1.00, 1.00]" in line
    assert "| + conv + HQSeg-44K " in text
    assert "5.857" in (home / "out" / "tables.tex").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"data": "photo"}, "no such choice of data"), ({"rows": "base", "data": "bare.env"}, "no such checkpoint")],
)
def test_wrong_usage_is_one_line(home: Path, changes: dict[str, str], told: str) -> None:
    (home / "bare.env").write_text("BASE=none.pth\n")
    done = tables(home, **changes)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["paper", "photos"])
def test_choices_of_data_fit_the_recipes(name: str) -> None:
    """No test holds what is trained on: it lies within the share that training leaves out; nothing is drawn twice."""
    unseen = load_recipe("clicknet_photos").data.held_out  # the share that was kept from the base that comes with hrseg
    file = SCRIPT.parent / "data" / f"{name}.env"
    seeds = re.findall(r"procedural .*--seed (\d+)", file.read_text())
    assert len(set(seeds)) == len(seeds)  # drawn images to train on and to test on
    names = ("TRAIN_REGULAR", "TRAIN_HIGH", "CHANGES", "CHANGES_CONV", "TEST_REGULAR", "TEST_HIGH", "BASE")
    show = f"set -euf; . {file}; " + "".join(f'printf "%s\\0" "${one}"; ' for one in names)
    done = subprocess.run(["sh", "-c", show], capture_output=True, text=True, check=True)
    found = dict(zip(names, done.stdout.split("\0"), strict=False))
    for part in ("REGULAR", "HIGH"):
        data = [f"data.parts={found[f'TRAIN_{part}']}"] if found[f"TRAIN_{part}"] else []
        load_recipe("paper/t3_lora", [*data, *found["CHANGES"].split()])
        conv = load_recipe("paper/t4_conv", [*data, *found["CHANGES"].split(), *found["CHANGES_CONV"].split()])
        tests = found[f"TEST_{part}"].split()
        trained = [split_options(one.dataset) for one in conv.data.parts]
        assert len({json.dumps(one) for one in trained} | set(tests)) == len(trained) + len(tests)
        for name, options in map(split_options, tests if data else []):
            same = next((others for other, others in trained if other == name), None)
            if name.endswith("/drawn"):
                continue
            if same is None:  # no row trains on it, but the base has
                assert float(options["held"]) <= unseen
                continue
            assert float(options["held"]) <= float(same["kept"]) < conv.data.held_out  # what judges lies behind it
            assert options.get("group") == same.get("group")


def test_a_row_differs_from_its_neighbour_in_one_thing() -> None:
    def settings(name: str) -> dict[str, str]:
        found = load_recipe(f"paper/{name}").model_dump(mode="json")
        return {key: json.dumps(value) for key, value in found.items() if key != "name"}

    def difference(one: str, other: str) -> set[str]:
        first, second = settings(one), settings(other)
        return {key for key in first if first[key] != second[key]}

    assert difference("t3_lora", "t3_lora_hq") == difference("t4_conv", "t4_conv_hq") == {"data"}
    assert difference("t3_lora_hq", "t3_lora_hq_boundary") == {"losses"}
    assert difference("t4_conv_hq", "t4_conv_hq_skip") == {"adapter"}
    assert difference("t4_conv_hq_skip", "t4_conv_hq_skip_boundary") == {"losses"}
    assert difference("t4_conv_hq_skip_boundary", "t4_conv_hq_skip_boundary_sobel") == {"adapter"}
    for control in ("head", "bn", "bitfit"):
        assert difference("t3_lora_hq_boundary", f"control_{control}") == {"adapter"}
    assert difference("t3_lora_hq_boundary", "control_full") == {"adapter", "optim"}
