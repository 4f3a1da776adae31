"""hrseg adapt: a small file beside a base, the same engine, and nothing attached to the wrong weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_photos
import torch
from PIL import Image
from reference import deterministic_weights
from safetensors.torch import load_file

from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.models.hrnet import h18s

Command = Callable[..., Any]
FEW = [
    "--workers", "0", "--logger", "csv", "--set", "data.epoch=4", "--set", "batch=2", "--set", "epochs=1",
    "--set", "data.crop=[32,48]", "--set", "data.min_area=20", "--set", "data.held_out=0.3", "--set", "optim.warmup=0",
    "--set", "validation.objects=1", "--set", "validation.max_clicks=1", "--set", "clicks.rounds=1",
]  # fmt: skip
DRAWN = ["--set", "data.parts=[{dataset: procedural}]"]  # the recipe's own dataset is not here


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_photos.boxes(tmp_path_factory.mktemp("data") / "boxes")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    model = h18s()
    model.load_state_dict(deterministic_weights(model.state_dict()))
    save_checkpoint(model, path, {})
    return path


@pytest.fixture
def adapt(hrseg: Command, photos: Path, base: Path) -> Command:
    return lambda *words: hrseg("adapt", "--from", base, "--dataset", photos, *words, *FEW)


@pytest.fixture(scope="module")
def runs() -> dict[str, Path]:
    return {}


@pytest.fixture
def adapted(adapt: Command, runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a finished run with an adapter, which tests share and do not change."""

    def finished(name: str) -> Path:
        if name not in runs:
            folder = tmp_path_factory.mktemp("runs") / name
            done = adapt("--adapter", name, "--out", folder)
            assert done.code == 0, done.err
            runs[name] = folder
        return runs[name]

    return finished


@pytest.mark.parametrize(
    "name",
    [
        "lora",
        "conv",
        "bn",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "head", "bitfit", "pointrend")),
    ],
)
def test_only_what_the_adapter_changes_is_kept(adapted: Callable[[str], Path], base: Path, name: str) -> None:
    out = adapted(name)
    kept = load_file(out / "last.safetensors")
    whole = load_file(base)
    trained = sum(value.numel() for value in kept.values())
    assert 0 < trained < sum(value.numel() for value in whole.values()) * (1.01 if name == "full" else 0.2)
    assert load_model(f"{base}+{out / 'last.safetensors'}")[1]["adapter"]["name"] == name
    # What training left in the memory: the adapter's file cannot show a frozen weight that moved.
    trained_state = torch.load(out / "last.ckpt", weights_only=True)["state_dict"]
    state = {key.removeprefix("model.").removeprefix("base."): value for key, value in trained_state.items()}
    changed = {key.removeprefix("base.") for key in kept}
    untouched = [key for key in whole if key not in changed]
    assert name == "full" or len(untouched) > 100
    assert all(torch.equal(state[key], whole[key]) for key in untouched)


def test_evaluate_takes_a_base_and_its_adapter(
    adapted: Callable[[str], Path], hrseg: Command, photos: Path, base: Path, tmp_path: Path
) -> None:
    spec = f"{base}+{adapted('conv') / 'best.safetensors'}"
    words = ["--limit", "1", "--max-clicks", "2", "--workers", "1", "--out", tmp_path / "judged"]
    done = hrseg("evaluate", "--model", spec, "--dataset", photos, *words)
    assert done.code == 0, done.err
    settings = json.loads((tmp_path / "judged" / "run.json").read_text())["asked"]["settings"]
    assert settings["model"]["adapter"]["base_weights"]


def test_another_base_is_refused(
    adapted: Callable[[str], Path], hrseg: Command, photos: Path, base: Path, tmp_path: Path
) -> None:
    other, adapter = tmp_path / "other.safetensors", adapted("lora") / "last.safetensors"
    save_checkpoint(h18s(), other, {})
    for spec, told in [
        (f"{other}+{adapter}", ": trained on other weights (base.safetensors"),
        (f"{base}+{base}", "is a whole model, not an adapter"),
        (f"{base}+{tmp_path}/none.safetensors", "no such file"),
        (f"{adapter}", "an adapter for base.safetensors, which does not ship with hrseg; give BASE+ADAPTER"),
    ]:
        done = hrseg("evaluate", "--model", spec, "--dataset", photos, "--out", tmp_path / "x")
        assert done.code == 1
        assert told in done.err
        assert len(done.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_lora_folds_into_one_checkpoint_and_conv_does_not(
    adapted: Callable[[str], Path], hrseg: Command, base: Path, tmp_path: Path
) -> None:
    spec, whole = f"{base}+{adapted('lora') / 'last.safetensors'}", tmp_path / "whole.safetensors"
    done = hrseg("adapt", "--from", spec, "--merge", whole)
    assert done.code == 0, done.err
    other = tmp_path / "other.safetensors"
    done = hrseg("merge", spec, other)
    assert (done.code, json.loads(done.out)) == (0, {"written": str(other)}), done.err
    assert other.read_bytes() == whole.read_bytes()
    image, points = torch.rand(1, 4, 64, 64), torch.full((1, 4, 3), -1.0)
    points[0, 0] = torch.tensor([30.0, 30.0, 0.0])
    answers = [load_model(name)[0](image, points)["logits"] for name in (spec, str(whole), str(base))]
    assert (answers[0] - answers[1]).abs().max() < 1e-5
    assert (answers[0] - answers[2]).abs().max() > 1e-5
    conv = f"{base}+{adapted('conv') / 'last.safetensors'}"
    done = hrseg("adapt", "--from", conv, "--merge", whole)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "cannot be merged into the weights" in done.err
    assert hrseg("merge", conv, other).code == 1
    assert other.read_bytes() == whole.read_bytes()
    done = hrseg("merge", base, other)
    assert (done.code, done.err) == (1, f"hrseg: MODEL {base}: has no adapter to merge; give BASE+ADAPTER\n")


def test_train_takes_a_dataset_with_an_adapter(
    adapted: Callable[[str], Path],
    hrseg: Command,
    photos: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same training as adapt's, to the byte, and what is replaced is said."""
    monkeypatch.chdir(tmp_path)
    words = ["--adapter", "lora", "--dataset", photos, *FEW, "--set", f"model.weights={base}"]
    done = hrseg("train", *words)
    assert done.code == 0, done.err
    assert f"training on {photos}, not on hqseg44k:split=train of recipe adapt_lora\n" in done.err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("train-lora-boxes+")
    mine, same = (load_file(folder / "last.safetensors") for folder in (run, adapted("lora")))
    assert mine.keys() == same.keys()
    assert all(torch.equal(mine[key], same[key]) for key in mine)


def test_a_finished_adaptation_is_not_trained_again(
    adapted: Callable[[str], Path], hrseg: Command, tmp_path: Path
) -> None:
    shutil.copytree(adapted("bn"), tmp_path / "run")
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    done = hrseg("adapt", "--resume", tmp_path / "run", "--logger", "csv")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--dataset", "x"], 1, "give --adapter ADAPTER"),
        (["--adapter", "lore"], 2, "Did you mean 'lora'?"),
        (["--adapter", "lora", "--from", "none.pth", *DRAWN], 1, "none.pth: no such file"),
        (["--recipe", "tiny_procedural"], 1, "trains no adapter"),
        (["--merge", "x", "--from", "grabcut"], 1, "has no adapter to merge"),
        (
            ["--merge", "x", "--workers", "0", "--adapter", "lora"],
            1,
            "only merges the model of --from; remove --adapter, --workers",
        ),
        (["--adapter", "lora", "--set", "adapter.options.rang=2", *DRAWN], 1, "adapter 'lora'"),
    ],
)
def test_wrong_usage(
    hrseg: Command, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = hrseg("adapt", *([] if "--from" in words else ["--from", base]), *words)
    assert done.code == code, done.err
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_training_skips_broken_files_and_resumes_after_its_data_has_moved(
    hrseg: Command, base: Path, tmp_path: Path
) -> None:
    photos, out = tiny_photos.boxes(tmp_path / "old" / "boxes"), tmp_path / "run"
    (photos / "images" / "3.png").write_bytes(b"x")
    words = ["adapt", "--from", base, "--dataset", photos, "--adapter", "bn", "--out", out]
    assert hrseg(*words, *FEW).code == 1
    shutil.rmtree(out)
    done = hrseg(*words, "--skip-broken", *FEW)
    assert done.code == 1
    assert "hrseg: skipped: " in done.err
    assert "skipped 1 broken files, listed above" in done.err
    assert json.loads(done.out)["skipped"] == 1
    assert json.loads((out / "run.json").read_text())["asked"]["machine"]["skip_broken"] is True
    (tmp_path / "old").rename(tmp_path / "new")
    done = hrseg("adapt", "--resume", out)
    assert done.code == 1
    assert "if the data has moved, give its new place as --root" in done.err
    done = hrseg("adapt", "--resume", out, "--root", tmp_path / "new")
    assert "skipped 1 broken files, listed above" in done.err, done.err
    assert json.loads(done.out)["steps"] == 2


def pairs_of_discs(folder: Path) -> Path:
    """A dataset whose objects are two discs apart: no network can know that the second belongs to the clicked one."""
    random = np.random.default_rng(0)
    rows, cols = np.mgrid[:96, :128]
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for k in range(24):
        image = random.integers(80, 130, (96, 128, 3), dtype=np.uint8)
        row, col = random.integers(30, 66), random.integers(30, 50)
        places = ((row, col, 22), (row, col + 44, 14), (96 - row, 115, 9))
        large, small, other = (np.hypot(rows - down, cols - across) < radius for down, across, radius in places)
        image[large], image[small], image[other] = (220, 120, 40), (40, 90, 200), (60, 160, 60)
        Image.fromarray(image).save(folder / "images" / f"{k:02d}.png")
        Image.fromarray((large | small).astype(np.uint8) * 255).save(folder / "masks" / f"{k:02d}.png")
    return folder


@pytest.mark.slow
def test_the_shipped_network_learns_a_kind_of_object_and_takes_it_everywhere(hrseg: Command, tmp_path: Path) -> None:
    """Adapted, it needs one click instead of two on objects it has not seen; merged and exported, it does the same."""
    data, run = pairs_of_discs(tmp_path / "data"), tmp_path / "run"

    def judged(model: object) -> dict[str, Any]:
        words = ["--protocol", "plain", "--max-clicks", "2", "--until", "2", "--workers", "1"]
        shutil.rmtree(tmp_path / "judged", ignore_errors=True)
        done = hrseg("evaluate", "-m", model, "-d", f"{data}:held=0.4", *words, "--out", tmp_path / "judged")
        assert done.code == 0, done.err
        row: dict[str, Any] = json.loads(done.out)
        return row

    before = judged("clicknet_s")
    assert (before["n"], before["NoC@90"]) == (10, 2)
    changes = [
        "data.crop=[96,128]", "data.epoch=80", "epochs=3", "data.augment.zoom=0", "validation.objects=1",
        f"validation.datasets=['{data}:held=0.4']", "validation.max_clicks=1",
    ]  # fmt: skip
    words = ["--recipe", "adapt_own", "--dataset", f"{data}:kept=0.4", "--workers", "0", "--logger", "csv"]
    for change in changes:
        words += ["--set", change]
    done = hrseg("adapt", "--from", "clicknet_s", *words, "--out", run)
    assert done.code == 0, done.err
    adapted = f"clicknet_s+{run / 'last.safetensors'}"
    after = judged(adapted)
    assert after["mean@1"] > before["mean@1"] + 0.15
    assert after["NoC@90"] < 1.5
    whole, graph = tmp_path / "whole.safetensors", tmp_path / "whole.onnx"
    for command, model in ((["merge", adapted, whole], whole), (["export", adapted, "--out", graph], graph)):
        done = hrseg(*command)
        assert done.code == 0, done.err
        same = judged(model)
        assert same["NoC@90"] == after["NoC@90"]
        assert same["mean@1"] == pytest.approx(after["mean@1"], abs=0.002)
