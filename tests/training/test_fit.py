"""Training: the reference's steps, equal weights after any interruption, and failures without losses."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from reference import GOLDEN, deterministic_weights
from safetensors.torch import load_file, save_file

from hrseg_cli import losses
from hrseg_cli.adapters import adapter_state
from hrseg_cli.checkpoints.adapters import save_adapter
from hrseg_cli.checkpoints.formats import read_backbone, read_checkpoint, save_checkpoint
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.errors import HrsegError, Interrupted
from hrseg_cli.models.hrnet import h18s
from hrseg_cli.recipe import Optim, Recipe, load_recipe, recipe_of
from hrseg_cli.training import fit, judge, step
from hrseg_cli.training.feed import Feed, Loader, Order, held_out_objects, training_images
from hrseg_cli.training.logs import Logs

NETWORK = np.load(GOLDEN / "network.npz")
NARROW = {"width": 4, "ocr_width": 8}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small images of a bright rectangle."""
    folder = tmp_path_factory.mktemp("data") / "boxes"
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for k in range(12):
        image = rng.integers(0, 90, (56, 72, 3), dtype=np.uint8)
        mask = np.zeros((56, 72), np.uint8)
        top, left = rng.integers(4, 24, 2)
        mask[top : top + 24, left : left + 30] = 255
        image[mask > 0] += 140
        Image.fromarray(image).save(folder / "images" / f"{k}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{k}.png")
    return folder


def recipe_on(photos: Path, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "name": "tiny",
        "model": changes.pop("model", {"name": "unet", "options": {"width": 4}}),
        "losses": [{"name": "nfl"}],
        "data": {
            "parts": [{"dataset": str(photos)}],
            "crop": [32, 48],
            "epoch": 8,
            "min_area": 20,
            "held_out": 0.2,
            "composite": {"probability": 0.3},
        },
        "clicks": {"rounds": 1, "drop_previous": 0.5, "off_centre": 0.2},
        "optim": {"name": "adamw", "lr": 1e-3, "backbone": 1.0, "heads": 1.0, "schedule": "cosine", "warmup": 2},
        "validation": {"objects": 1, "max_clicks": 2, "protocol": "plain"},
        "batch": 2,
        "epochs": 2,
    }
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    return recipe_of(settings, "test")


def run(recipe: Recipe, folder: Path, workers: int = 0, loggers: tuple[str, ...] = ()) -> dict[str, Any]:
    """Train like the command, in this process."""
    folder.mkdir(exist_ok=True)
    model, provenance = fit.start_model(recipe)
    feed = Feed(training_images(recipe.data, None, folder), recipe)
    judged = judge.judged_objects(recipe, None)
    machine = fit.Machine(workers=workers, loggers=loggers, progress=False)
    return fit.fit(model, recipe, feed, judged, folder, machine, provenance)


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / fit.LAST_WEIGHTS), load_file(other / fit.LAST_WEIGHTS)
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(recipe_on(photos), folder, loggers=("csv", "tensorboard"))
    return folder


# ---- the reference's steps -------------------------------------------------------------------------------------------


def test_two_steps_move_what_the_reference_moves() -> None:
    """Learning-rate groups and batch statistics, including those of the unused branch. The recorded target is lost, so
    losses are not compared here; they have records of their own."""
    recorded = json.loads((GOLDEN / "train_step.json").read_text())
    model = h18s()
    model.load_state_dict(deterministic_weights(model.state_dict()))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step.train_mode(model, 2)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0
    rng = np.random.default_rng(0)
    image = np.concatenate([rng.random((2, 3, 96, 128)), rng.random((2, 1, 96, 128))], 1).astype(np.float32)
    rows, cols = np.mgrid[:96, :128]
    disk = (rows - 48) ** 2 + (cols - 64) ** 2 < 23**2
    target = torch.from_numpy(np.stack([disk, disk])[:, None].astype(np.float32))
    optimizer = step.make_optimizer(model, Optim())
    values = []
    for _ in range(2):
        out = model(torch.from_numpy(image), torch.from_numpy(NETWORK["h18s_A_points"]))
        loss = losses.normalized_focal(out["logits"], target).mean() + 0.4 * losses.bce(out["aux"], target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[1] < values[0]
    after = model.state_dict()
    for key, moved in recorded["delta_abs_max"].items():
        tolerance = 0.2 if key == "maps_transform.3.scale" else 2e-3  # one number: its step depends on the target
        assert (after[key] - before[key]).abs().max().item() == pytest.approx(moved, rel=tolerance), key


def test_backbone_and_heads_have_factors_of_their_own() -> None:
    groups = step.make_optimizer(h18s(), Optim(lr=1.0, backbone=0.5, heads=0.25)).param_groups
    assert [group["lr"] for group in groups] == [1.0, 0.25, 0.5]
    assert len(groups[0]["params"]) == 30  # as RITM counts them


def test_rmsprop_takes_its_decay_from_the_second_beta() -> None:
    """And no momentum from the first: Tiramisu is trained without."""
    optimizer = step.make_optimizer(h18s(), Optim(name="rmsprop", betas=(0.9, 0.995), weight_decay=1e-4))
    assert isinstance(optimizer, torch.optim.RMSprop)
    settings = {(group["alpha"], group["momentum"], group["weight_decay"]) for group in optimizer.param_groups}
    assert settings == {(0.995, 0, 1e-4)}


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        (Optim(schedule="steps", milestones=[1, 2]), [1, 1, 0.1, 0.1, 0.01, 0.01]),
        (Optim(schedule="constant", warmup=4), [0.25, 0.5, 0.75, 1, 1, 1]),
        (Optim(schedule="cosine", floor=0.5), [1, 0.9665, 0.875, 0.75, 0.625, 0.5335]),
        (Optim(schedule="cosine", level=0.5), [1, 1, 1, 1, 0.75, 0.25]),
    ],
)
def test_schedules(optim: Optim, expected: list[float]) -> None:
    factor = step.schedule(optim, steps=2, epochs=3)
    assert [factor(step) for step in range(6)] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_one_sample_a_batch_trains(photos: Path, tmp_path: Path) -> None:
    """The reference crashes when a BatchNorm sees a single value per channel."""
    run(recipe_on(photos, model={"name": "h18s", "options": NARROW}, batch=1, epochs=1), tmp_path / "run")
    assert (tmp_path / "run" / fit.LAST_WEIGHTS).exists()


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_samples_do_not_depend_on_who_makes_them(photos: Path, tmp_path: Path) -> None:
    recipe = recipe_on(photos)
    feed = Feed(training_images(recipe.data, None, tmp_path), recipe)
    alone = list(Loader(feed, Order(recipe, 0, 1), workers=0))
    helped = list(Loader(feed, Order(recipe, 0, 1), workers=2))
    shared = [
        batch for pair in zip(*(Loader(feed, Order(recipe, r, 2), 0) for r in (0, 1)), strict=True) for batch in pair
    ]
    for other in (helped, shared):
        for one, two in zip(alone, other, strict=True):
            assert all(torch.equal(one[name], two[name]) for name in one if name != "turn")  # which counts batches
    assert alone[0]["image"].shape == (2, 3, 32, 48)
    assert not torch.equal(alone[0]["image"], alone[1]["image"])


def test_held_out_images_are_never_trained_on(photos: Path, tmp_path: Path) -> None:
    recipe = recipe_on(photos)
    kept = {ref.id for images in training_images(recipe.data, None, tmp_path) for scene in images for ref in scene}
    held = {ref.id for part in held_out_objects(recipe.data, None) for ref in part}
    assert held
    assert kept
    assert not held & kept
    assert len(held | kept) == 12


# ---- the same weights, whatever happens ------------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    judged = list(csv.DictReader((whole / "judged.csv").read_text().splitlines()))
    assert [row["epoch"] for row in judged] == ["1", "2"]
    assert {"best.safetensors", "last.safetensors", "last.ckpt", "log"} <= {path.name for path in whole.iterdir()}
    logged = (whole / "log" / "metrics.csv").read_text()
    assert "train/logits_nfl" in logged
    assert "val/clicks" in logged
    assert list((whole / "log").glob("events.out.tfevents.*"))
    _, provenance = read_checkpoint(whole / "best.safetensors")
    assert provenance["judged"]["clicks"] == min(float(row["clicks"]) for row in judged)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_stopped_in_the_middle_it_goes_on_to_the_same_weights(
    photos: Path, tmp_path: Path, whole: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within an epoch and at its last batch: bit-identical weights and equal validation results."""
    handed = fit.Checkpointing.on_train_batch_end
    batches = 0

    def stop_at_times(self: fit.Checkpointing, *arguments: Any) -> None:
        nonlocal batches
        batches += 1
        self.stop_requested = batches in (1, 4, 6)
        handed(self, *arguments)

    monkeypatch.setattr(fit.Checkpointing, "on_train_batch_end", stop_at_times)
    interrupted = 0
    while True:
        try:
            run(recipe_on(photos), tmp_path / "run", workers, ("csv", "tensorboard"))
            break
        except Interrupted:
            interrupted += 1
    assert interrupted == 3
    assert same_weights(whole, tmp_path / "run")
    for name in ("judged.csv", "log/metrics.csv"):
        assert (tmp_path / "run" / name).read_text() == (whole / name).read_text()
    seen, expected = ([file.name for file in (one / "log").iterdir()] for one in (tmp_path / "run", whole))
    assert len(seen) == len(expected) == 2  # one file of events, however often it was started


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "conv"])
def test_an_adapter_learns_and_goes_on_to_the_same_tensors(
    photos: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base.safetensors"
    model = h18s()
    model.load_state_dict(deterministic_weights(model.state_dict()))
    save_checkpoint(model, base, {})
    changes: dict[str, Any] = {"losses": [{"name": "bce"}], "epochs": 3, "validation": {"every": 3}}
    changes["clicks"] = {"rounds": 0}
    optim = {"lr": 3e-3, "schedule": "constant", "warmup": 0}
    recipe = recipe_on(photos, model={"weights": str(base)}, adapter={"name": name}, optim=optim, **changes)
    run(recipe, tmp_path / "whole", loggers=("csv",))
    rows = csv.DictReader((tmp_path / "whole" / "log" / "metrics.csv").read_text().splitlines())
    means = [float(row["train/loss_epoch"]) for row in rows if row["train/loss_epoch"]]
    assert means[-1] < 0.9 * means[0]

    handed, batches = fit.Checkpointing.on_train_batch_end, iter(range(100))

    def stop_once(self: fit.Checkpointing, *arguments: Any) -> None:
        self.stop_requested = next(batches) == 5  # in the middle of the second epoch
        handed(self, *arguments)

    monkeypatch.setattr(fit.Checkpointing, "on_train_batch_end", stop_once)
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "parts")
    run(recipe, tmp_path / "parts")
    files = [load_file(tmp_path / part / fit.LAST_WEIGHTS) for part in ("whole", "parts")]
    assert files[0].keys() == files[1].keys()
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_finished_epoch_is_not_trained_again(photos: Path, tmp_path: Path, whole: Path) -> None:
    """Stopped between two epochs, then resumed."""
    run(recipe_on(photos, epochs=1, optim={"schedule": "constant"}), tmp_path / "a")
    run(recipe_on(photos, epochs=2, optim={"schedule": "constant"}), tmp_path / "a")
    run(recipe_on(photos, epochs=2, optim={"schedule": "constant"}), tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_seeds_differ(photos: Path, tmp_path: Path, whole: Path) -> None:
    run(recipe_on(photos, seed=1), tmp_path / "run")
    assert not same_weights(whole, tmp_path / "run")


@pytest.mark.slow
def test_averaged_weights_are_saved_and_resumed(photos: Path, tmp_path: Path, whole: Path) -> None:
    averaged = recipe_on(photos, optim={"ema": 0.5, "schedule": "constant"})
    run(averaged, tmp_path / "one", loggers=("csv",))
    run(averaged.model_copy(update={"epochs": 1}), tmp_path / "two", loggers=("csv",))
    log = tmp_path / "two" / "log" / "metrics.csv"
    columns = log.read_text().splitlines()[0].count(",") + 1
    with log.open("a", newline="") as file:
        file.write(",".join(["99"] * columns) + "\r\n")  # a step that an outright kill has lost
    with (tmp_path / "two" / "judged.csv").open("a", newline="") as file:
        file.write("2,1,0.5,0.5\r\n3,1,")  # judged, and killed before the checkpoint
    run(averaged, tmp_path / "two", loggers=("csv",))
    assert not same_weights(whole, tmp_path / "one")
    assert same_weights(tmp_path / "one", tmp_path / "two")
    logs = [(tmp_path / name / "log" / "metrics.csv").read_text() for name in ("one", "two")]
    assert logs[0] == logs[1]  # with the rows of the first epoch, and once each
    judged = [(tmp_path / name / "judged.csv").read_text() for name in ("one", "two")]
    assert judged[0] == judged[1]


def test_averages_lie_where_the_model_will_be() -> None:
    """Lightning creates them before it moves the model: with a GPU they would stay on the CPU."""
    module = step.ClickTraining(h18s(), load_recipe("tiny_procedural"))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    averaging = judge.Averaging()
    averaging.setup(trainer, module, "fit")  # type: ignore[arg-type]
    averaged = judge.trained_model(SimpleNamespace(callbacks=[averaging]), module)  # type: ignore[arg-type]
    assert {value.device.type for value in averaged.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("machine", "devices"),
    [
        (fit.Machine(), 1),
        (fit.Machine(processes=2), 2),
        (fit.Machine("cuda"), 1),
        (fit.Machine("cuda", processes=4), 4),
        (fit.Machine("cuda:1"), [1]),
    ],
)
def test_the_trainer_gets_the_device_that_was_named(machine: fit.Machine, devices: int | list[int]) -> None:
    assert fit.devices_of(machine) == devices


def test_one_gpu_for_many_processes_is_refused() -> None:
    with pytest.raises(HrsegError, match=r"`device` cuda:1: one GPU for 2 processes; use `device` cuda"):
        fit.devices_of(fit.Machine("cuda:1", processes=2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_stop(
    photos: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed, batches = fit.Checkpointing.on_train_batch_end, iter(range(10000))

    def interrupted(self: fit.Checkpointing, *arguments: Any) -> None:
        if next(batches) == 2:
            os.kill(os.getpid(), number)
        handed(self, *arguments)

    monkeypatch.setattr(fit.Checkpointing, "on_train_batch_end", interrupted)
    with pytest.raises(Interrupted):
        run(recipe_on(photos, epochs=10000), tmp_path / "run")
    assert (tmp_path / "run" / fit.LAST).exists()
    assert next(batches) < 5


# ---- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_progress_it_stops(photos: Path, tmp_path: Path) -> None:
    """With a learning rate of 0 the first validation stays the best."""
    recipe = recipe_on(photos, epochs=50, optim={"lr": 1e-30}, validation={"patience": 2, "max_clicks": 1})
    ended = run(recipe, tmp_path / "run")["epochs"]
    assert ended < 50
    before = (tmp_path / "run" / fit.LAST_WEIGHTS).read_bytes()
    assert run(recipe, tmp_path / "run")["epochs"] == ended
    assert (tmp_path / "run" / fit.LAST_WEIGHTS).read_bytes() == before


# ---- failures --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_keeps_its_batch(photos: Path, tmp_path: Path) -> None:
    recipe = recipe_on(photos, optim={"lr": 1e30, "warmup": 0}, epochs=9)
    with pytest.raises(HrsegError, match=r"the loss became \S+ at step \d+ \(batch saved to .*bad_batch_0.pt"):
        run(recipe, tmp_path / "run")
    batch = torch.load(tmp_path / "run" / "bad_batch_0.pt", weights_only=True)
    assert batch["image"].shape == (2, 3, 32, 48)


def test_imagenet_weights_must_cover_the_backbone(tmp_path: Path) -> None:
    source = h18s()
    tensors = {
        key.removeprefix("feature_extractor."): value.clone() + 1
        for key, value in source.state_dict().items()
        if key.startswith("feature_extractor.") and value.is_floating_point()
    }
    save_file(tensors, tmp_path / "whole.safetensors")
    model = h18s()
    assert model.initialise(read_backbone(str(tmp_path / "whole.safetensors")), 0.9) > 0.99
    assert torch.equal(model.state_dict()["feature_extractor.conv1.weight"], tensors["conv1.weight"])
    save_file({key: value for key, value in tensors.items() if "stage4" not in key}, tmp_path / "part.safetensors")
    with pytest.raises(HrsegError, match=r"covers \d+% of the network's backbone.*stage4"):
        h18s().initialise(read_backbone(str(tmp_path / "part.safetensors")), 0.8)


@pytest.mark.parametrize("name", ["lora", "bn", "conv"])
def test_an_adapted_model_is_trained_on_as_a_plain_one(photos: Path, tmp_path: Path, name: str) -> None:
    """Its checkpoints could not be read: they would hold the adapter's tensors under the base's name."""
    base, adapter, whole = (tmp_path / f"{one}.safetensors" for one in ("base", "adapter", "whole"))
    start = h18s(**NARROW)
    start.load_state_dict(deterministic_weights(start.state_dict()))
    save_checkpoint(start, base, {})
    model, provenance = fit.start_model(recipe_on(photos, model={"weights": str(base)}, adapter={"name": name}))
    with torch.no_grad():
        for tensor in adapter_state(model).values():
            tensor += 0.01 if tensor.is_floating_point() else 1
    save_adapter(model, adapter, name, {}, provenance["base_weights"], provenance)
    recipe = recipe_on(photos, model={"weights": f"{base}+{adapter}"})
    if name == "conv":
        with pytest.raises(HrsegError, match=r"model.weights=.*cannot be merged into the weights"):
            fit.start_model(recipe)
        return
    plain, started = fit.start_model(recipe)
    assert started["started_from"]["adapter"]["name"] == name
    assert {type(module) for module in plain.modules()} == {type(module) for module in h18s().modules()}
    assert all(parameter.requires_grad for parameter in plain.parameters())
    save_checkpoint(plain, whole, {})
    image, points = torch.rand(1, 4, 32, 48), torch.full((1, 2, 3), -1.0)
    with torch.no_grad():
        answers = [load_model(str(spec))[0](image, points)["logits"] for spec in (whole, f"{base}+{adapter}", base)]
    torch.testing.assert_close(answers[0], answers[1], atol=1e-4, rtol=1e-4)
    assert (answers[1] - answers[2]).abs().max() > 1e-2


def test_an_epoch_smaller_than_a_batch_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(HrsegError, match="fewer samples than one batch"):
        run(recipe_on(photos, batch=9), tmp_path / "run")


# ---- the command -----------------------------------------------------------------------------------------------------


def command(arguments: list[str], folder: Path, timeout: int = 200) -> subprocess.CompletedProcess[str]:
    """The installed command: further processes are started from its path."""
    hrseg = Path(sys.executable).with_name("hrseg")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(hrseg), *arguments], capture_output=True, text=True, timeout=timeout, cwd=folder, env=environment
    )


@pytest.mark.slow
def test_a_signal_to_the_whole_job_saves_and_stops(photos: Path, tmp_path: Path) -> None:
    """Ctrl-C in a terminal and SIGTERM from a scheduler reach the data workers too."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_on(photos, epochs=10000).model_dump(mode="json")))
    hrseg = str(Path(sys.executable).with_name("hrseg"))
    arguments = [hrseg, "train", "--recipe", "r.yaml", "--out", "run", "--logger", "csv"]
    job = subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stderr is not None
    assert job.stderr.readline().startswith("epoch 1/10000: loss ")
    os.killpg(job.pid, signal.SIGTERM)
    _, told = job.communicate(timeout=60)
    assert job.returncode == 130, told
    assert "Traceback" not in told
    assert (tmp_path / "run" / fit.LAST).exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["got"]["status"] == "interrupted"


@pytest.mark.slow
def test_two_processes_train_and_resume(photos: Path, tmp_path: Path) -> None:
    """Over gloo, killed and resumed: the weights of an uninterrupted run."""
    recipe = recipe_on(photos, optim={"schedule": "constant"}, epochs=3, validation={"every": 3, "objects": 4})
    terms = recipe.model_dump(mode="json")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(terms))
    base = ["train", "--recipe", "r.yaml", "--processes", "2", "--workers", "0", "--logger", "csv"]
    done = command([*base, "--out", "one"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 6
    hrseg = str(Path(sys.executable).with_name("hrseg"))
    job = subprocess.Popen([hrseg, *base, "--out", "two"], cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(tmp_path / "two" / fit.LAST)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    resumed = command(["train", "--resume", "two"], tmp_path)  # which knows of the processes
    assert resumed.returncode == 0, resumed.stderr
    assert same_weights(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "judged.csv").read_text() == (tmp_path / "two" / "judged.csv").read_text()
    # The judged weights are the saved ones, batch statistics too: those of one process.
    model, provenance = read_checkpoint(tmp_path / "one" / judge.BEST_WEIGHTS)
    objects = judge.judged_objects(recipe, None)
    assert len(objects) > 1
    logs = Logs(tmp_path, recipe, False, judge.Judge.columns)
    alone = judge.Judge(objects, recipe, tmp_path, fit.write_weights, logs).measured(model.eval()).mean(0)
    assert [provenance["judged"][key] for key in ("clicks", "first", "last")] == pytest.approx(
        alone.tolist(), abs=1e-12
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert lines[-1] == [line for line in resumed.stderr.splitlines() if line.startswith("epoch ")][-1]


NAN_ON_ONE = """
import os, torch
from hrseg_cli.training import fit, judge, step
kept = step.ClickTraining.loss
def loss(*arguments):
    total, values = kept(*arguments)
    return (total * float("nan") if os.environ.get("LOCAL_RANK", "0") == RANK else total), values
step.ClickTraining.loss = loss
from hrseg_cli.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_no_number_in_one_process_ends_all_with_one_line(photos: Path, tmp_path: Path, rank: str) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_on(photos).model_dump(mode="json")))
    (tmp_path / "job.py").write_text(NAN_ON_ONE.replace("== RANK", f"== {rank!r}"))
    arguments = ["train", "--recipe", "r.yaml", "--out", "run", "--processes", "2", "--workers", "0", "--logger", "csv"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "job.py", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert f"batch saved to run/bad_batch_{rank}.pt" in lines[0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["got"]["status"] == "failed"


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not come")


def test_the_boundary_loss_gets_distances_from_the_loader(photos: Path, tmp_path: Path) -> None:
    """NFL + 0.1 boundary loss with growing weight; the terms are logged separately."""
    terms = [{"name": "nfl"}, {"name": "boundary", "weight": 0.1, "options": {"normalize": "diagonal"}}]
    recipe = recipe_on(photos, losses=terms, loss_schedule={"kind": "increase"})
    feed = Feed(training_images(recipe.data, None, tmp_path), recipe)
    sample = feed[(0, 0, 0)]
    distance, truth = sample["distance"], sample["truth"]
    assert (distance[truth == 1] < 0).all()
    assert (distance[truth == 0] > 0).all()
    assert distance.abs().max() < 1
    run(recipe, tmp_path / "run", loggers=("csv",))
    assert "train/logits_boundary" in (tmp_path / "run" / "log" / "metrics.csv").read_text()


@pytest.mark.slow
def test_weights_and_biases_works_without_a_network(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    terms = recipe_on(photos, epochs=1).model_dump(mode="json")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(terms))
    offline = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    hrseg = str(Path(sys.executable).with_name("hrseg"))
    arguments = [hrseg, "train", "--recipe", "r.yaml", "--out", "run", "--workers", "0", "--logger", "wandb"]
    done = subprocess.run(arguments, cwd=tmp_path, env=offline, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_coarser_output_is_compared_with_shares_of_object_pixels() -> None:
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., :4, :2] = 1
    truth[..., 7, 7] = -1
    small = step.reduced(truth, torch.Size([2, 2]))
    assert small[0, 0].tolist() == [[0.5, 0], [0, -1]]
    assert step.reduced(truth, truth.shape[-2:]) is truth


def test_a_killed_process_of_the_loader_is_told_in_one_line() -> None:
    """The kernel kills it when memory is short; everything else that PyTorch raises stays what it is."""
    with pytest.raises(HrsegError, match="a process that prepares samples died"), fit._worker_deaths_named():
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="shapes"), fit._worker_deaths_named():
        raise RuntimeError("shapes")
