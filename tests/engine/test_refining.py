"""Refiners of the catalog behind one call, in sessions and in protocols."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import FakeNetwork
from tiny_photos import SQUARES, SameColour, boxes, photograph, truth

from hrseg_cli import catalog
from hrseg_cli.checkpoints.formats import save_network
from hrseg_cli.engine import refining
from hrseg_cli.engine.in_flight import batched
from hrseg_cli.engine.refining import Refiner, open_refiner
from hrseg_cli.engine.session import Session
from hrseg_cli.engine.simulate import Plan, clicking, simulate
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Click, Sample
from hrseg_cli.recipe import Refine, load_protocol
from hrseg_cli.refiners.cascadepsp.network import RefinementModule
from hrseg_cli.refiners.segrefiner.unet import Denoiser

TINY: dict[str, Any] = {"width": 32, "multipliers": (1,) * 4, "blocks": 1, "attention_strides": (), "heads": 1}
GUIDED = ["refine.name=guided_filter", "refine.options.radius=9"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an untrained network of SegRefiner."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    what = {"kind": "refiner", "name": "segrefiner", "options": TINY}
    save_network(Denoiser(**TINY), path, what, {"made_by": "a test"})
    return path


@pytest.fixture(scope="module")
def cascade(weights: Path) -> Path:
    """A file with an untrained network of CascadePSP."""
    path = weights.with_name("cascade.safetensors")
    torch.manual_seed(0)
    network = RefinementModule(width=4, blocks=(1, 1, 1, 1), side=64)
    what = {"kind": "refiner", "name": "cascadepsp", "options": network.config}
    save_network(network, path, what, {"made_by": "a test"})
    return path


def shifted() -> np.ndarray:
    """A mask three pixels beside the red square."""
    return np.roll(truth("red"), 3, 1).astype(np.float32)


# One call for all of them


@pytest.mark.parametrize("name", list(catalog.REFINERS))
def test_every_refiner_takes_and_returns_the_same(name: str, weights: Path, cascade: Path) -> None:
    """Clicks and model are offered to all; each takes what it needs."""
    learned = {
        "segrefiner": {"weights": str(weights), "options": {"side": 64, "most": 2}},
        "cascadepsp": {"weights": str(cascade), "options": {"side": 96}},
    }
    refiner = open_refiner(Refine(name=name, **learned.get(name, {})))
    image, coarse = photograph(), shifted()
    image.flags.writeable = coarse.flags.writeable = False
    refined = refiner(image, coarse, [Click(40, 40, True)], SameColour())
    assert (refined.dtype, refined.shape) == (np.float32, coarse.shape)
    assert 0 <= refined.min() <= refined.max() <= 1
    assert not refined[:, 150:].any(), "far from the object"
    for empty in (np.zeros_like(coarse), np.full_like(coarse, 0.3)):
        np.testing.assert_array_equal(refiner(image, empty, (), SameColour()), empty)
    assert refiner(image, np.ones_like(coarse), (), SameColour()).shape == coarse.shape


def test_the_surroundings_are_refined_as_if_they_were_the_image() -> None:
    """The cost must depend on the object; the result must not depend on where the object lies."""
    image, coarse = photograph(), shifted()
    refiner = Refiner(Refine(name="guided_filter", options={"radius": 3}))
    whole = refiner(image, coarse)
    wide = np.pad(image, ((0, 0), (0, 900), (0, 0)), mode="edge"), np.pad(coarse, ((0, 0), (0, 900)))
    sizes = []
    call, refiner._call = (
        refiner._call,
        lambda image, *rest, **options: (sizes.append(image.shape), call(image, *rest, **options))[1],
    )
    np.testing.assert_allclose(refiner(*wide)[:, :160], whole, atol=1e-6)
    assert sizes[0][1] < 160


def test_zoom_in_without_clicks_follows_the_model() -> None:
    """The model sees the crop with the mask, and no clicks; its answer is pasted back."""
    seen = []

    class Grown(SameColour):
        def forward(self, image: torch.Tensor, points: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append((tuple(image.shape), float(points[..., :2].max())))
            square = (image[:, :3] - torch.tensor([200, 60, 50])[:, None, None] / 255).abs().sum(1, keepdim=True) < 0.2
            return {"logits": torch.where(square, 8.0, -8.0)}

    refiner = open_refiner(Refine(name="zoom_in", options={"side": 70}))
    refined = refiner(photograph(), shifted(), (), Grown())
    assert np.count_nonzero((refined > 0.5) != truth("red")) < 100
    ((shape, highest),) = seen
    assert max(shape[2:]) == 70
    assert highest < 0, "no click"
    halving = Grown()
    halving.enlarge = 2
    refiner(photograph(), shifted(), (), halving)
    assert max(seen[1][0][2:]) == 140, "a model that halves its input gets twice as many pixels"
    with pytest.raises(HrsegError, match="runs the click model"):
        refiner(photograph(), shifted())


def test_options_and_names_are_checked() -> None:
    with pytest.raises(UnknownName, match=r"unknown refiner 'guidedfilter'. Did you mean 'guided_filter'"):
        open_refiner(Refine(name="guidedfilter"))
    with pytest.raises(UnknownName, match=r"unknown option of guided_filter 'radios'. Did you mean 'radius'"):
        open_refiner(Refine(name="guided_filter", options={"radios": 3}))
    with pytest.raises(UnknownName, match="clicks"):
        open_refiner(Refine(name="zoom_in", options={"clicks": []}))
    for options in ({"radius": 0}, {"radius": "wide"}, {"smoothness": float("nan")}):
        with pytest.raises(HrsegError, match="refiner guided_filter: option "):
            open_refiner(Refine(name="guided_filter", options=options))
    with pytest.raises(HrsegError, match="has no network of its own"):
        open_refiner(Refine(name="graph_cut", weights=__file__))
    with pytest.raises(HrsegError, match="segrefiner: needs weights"):
        open_refiner(Refine(name="segrefiner"))
    assert refining.options_of(["radius=8", "way=auto"]) == {"radius": 8, "way": "auto"}
    with pytest.raises(HrsegError, match="`options` radius: write an option"):
        refining.options_of(["radius"])


def test_weights_of_other_kinds_are_refused(weights: Path, tmp_path: Path) -> None:
    public = tmp_path / "public.pth"
    torch.save({"state_dict": {"denoise_model.x": torch.zeros(1)}}, public)
    with pytest.raises(HrsegError, match=r"public.pth: its weights do not match its configuration"):
        open_refiner(Refine(name="segrefiner", weights=str(public)))
    other = tmp_path / "other.safetensors"
    save_network(Denoiser(**TINY), other, {"kind": "refiner", "name": "another", "options": TINY}, {})
    with pytest.raises(HrsegError, match="contains the network of refiner another"):
        open_refiner(Refine(name="segrefiner", weights=str(other)))
    model = Path(catalog.__file__).parent / "weights" / "h18s.safetensors"
    with pytest.raises(HrsegError, match="contains a model, not a refiner"):
        open_refiner(Refine(name="segrefiner", weights=str(model)))


# In a protocol


def test_the_refiner_is_part_of_what_is_recorded(weights: Path, tmp_path: Path) -> None:
    """Without one, nothing is recorded, so that runs of earlier versions resume. Weights are recorded by content."""
    plain = load_protocol("ritm")
    assert "refine" not in plain.model_dump()
    refined = load_protocol("ritm", ["refine.name=guided_filter"])
    assert refined.name == "ritm+refine.name=guided_filter"
    assert refined.model_dump()["refine"]["when"] == "each"
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(weights.read_bytes())
    recorded = load_protocol("ritm", ["refine.name=segrefiner", f"refine.weights={copied}"])
    assert recorded.refine
    assert len(recorded.refine.sha256 or "") == 64
    again = [f"refine.{key}={value}" for key, value in recorded.refine.model_dump().items() if key != "options"]
    assert load_protocol("ritm", again).refine == recorded.refine
    copied.write_bytes(copied.read_bytes()[:-1] + b"x")
    with pytest.raises(HrsegError, match="not the file with SHA-256"):
        load_protocol("ritm", again)
    with pytest.raises(HrsegError, match=r"gone.pth: No such file"):
        load_protocol("ritm", ["refine.name=segrefiner", "refine.weights=gone.pth"])


def test_each_shows_the_refined_mask_to_the_model_and_last_does_not() -> None:
    click = Click(40, 40, True)
    plain, each, last = (
        Session(SameColour(), photograph(), load_protocol("plain", changes), shifted())
        for changes in ([], GUIDED, [*GUIDED, "refine.when=last"])
    )
    for session in (plain, each, last):
        session.click(click)
    refiner = Refiner(Refine(name="guided_filter", options={"radius": 9}))
    wanted = refiner(photograph(), plain.probability, [click])
    np.testing.assert_array_equal(each.probability, wanted)
    assert (wanted != plain.probability).any()
    np.testing.assert_array_equal(last.probability, plain.probability)
    for session in (plain, each):
        np.testing.assert_array_equal(session.finish(), session.mask)
        assert session.undo()
        assert not session.undo(), "finishing is no step without a refiner that runs last"
        assert session.redo()
    np.testing.assert_array_equal(last.finish(), each.mask)
    np.testing.assert_array_equal(last.probability, wanted)
    assert last.undo()
    np.testing.assert_array_equal(last.probability, plain.probability)
    assert last.undo()
    assert not last.undo()
    last.finish()
    np.testing.assert_array_equal(last.probability, shifted())  # nothing was clicked, so nothing is refined
    with pytest.raises(HrsegError, match="no refiner"):
        plain.refine()
    np.testing.assert_array_equal(plain.refine(refiner), each.mask)


def test_scores_are_those_of_the_refined_mask() -> None:
    """With "last" clicks are those of no refiner, and each score is that of the mask after refining it."""
    sample = Sample("x", "y", photograph(), truth("red").astype(np.int8), shifted())

    def traced(*changes: str) -> Any:
        plan = Plan(load_protocol("plain", changes), {"iou": 2.0}, max_clicks=4)
        return simulate(sample, SameColour(), plan)[0]

    plain, last, each = traced(), traced(*GUIDED, "refine.when=last"), traced(*GUIDED)
    assert plain.clicks == last.clicks
    assert plain.scores != last.scores
    assert each.clicks[0] == plain.clicks[0]
    assert each.scores["iou"][0] == last.scores["iou"][0]


def test_objects_in_flight_share_the_model_that_refines() -> None:
    """zoom_in runs the model; its queries are batched like those of clicks, with the same result."""
    samples = [Sample(str(k), "y", photograph(), truth(name).astype(np.int8)) for k, name in enumerate(SQUARES)]
    plan = Plan(load_protocol("plain", ["refine.name=zoom_in", "refine.options.side=64"]), {"iou": 2.0}, max_clicks=3)
    alone = [simulate(sample, FakeNetwork(), plan)[0] for sample in samples]
    tasks = (clicking(sample, FakeNetwork(), plan) for sample in samples)
    together = dict(batched(FakeNetwork(), tasks, 2, 1))
    for number, trace in enumerate(alone):
        assert together[number][0].clicks == trace.clicks
        assert together[number][0].scores["iou"] == pytest.approx(trace.scores["iou"], abs=1e-4)


def test_evaluate_and_predict_record_it(hrseg: Callable[..., Any], tmp_path: Path) -> None:
    folder = boxes(tmp_path / "boxes")
    words = ["evaluate", "-m", "grabcut", "-d", folder, "--limit", 1, "--max-clicks", 2, "--workers", 1]
    done = hrseg(*words, "--refine", "guided_filter", "--set", "refine.options.radius=2", "-o", tmp_path / "run")
    assert done.code == 0, done.err
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert settings["asked"]["settings"]["protocol"]["refine"]["options"] == {"radius": 2}
    assert "refine.name=guided_filter" in settings["asked"]["settings"]["protocol"]["name"]
    for name, says in (("guidedfilter", "unknown refiner"), ("segrefiner", "needs weights; give their file")):
        done = hrseg(*words, "--refine", name, "-o", tmp_path / "never")
        assert says in done.err
        assert not (tmp_path / "never").exists()
    words = ["predict", folder / "images" / "0.png", "-m", "grabcut", "--click", "20,30", "-o", tmp_path / "out"]
    areas = [json.loads(hrseg(*words, *more).out)["area"] for more in ([], ["--refine", "graph_cut"], [])]
    assert areas[0] == areas[2]
