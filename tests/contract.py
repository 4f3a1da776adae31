"""What every family of models keeps to, of whatever kind it is: what a test here asks of a model either works, or is
refused in one line that a user can act on.

A test module takes these functions in by ``from contract import *`` and gives them a fixture ``name``: a line of
``catalog.MODELS``.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_zoo import SMALL_ZOO
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hrseg_cli import catalog
from hrseg_cli.adapters import adapter_state
from hrseg_cli.adapters.lora import adaptable
from hrseg_cli.checkpoints.adapters import attach, merged, save_adapter
from hrseg_cli.checkpoints.formats import read_checkpoint, save_checkpoint
from hrseg_cli.checkpoints.provenance import weights_hash
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.engine.cost import gmac
from hrseg_cli.engine.export import export
from hrseg_cli.engine.fast import PRECISIONS, fast
from hrseg_cli.engine.runtimes import ModelChoice, open_model
from hrseg_cli.engine.simulate import Plan, run
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import ASKED, InteractiveModel
from hrseg_cli.recipe import Recipe, load_protocol, recipe_of
from hrseg_cli.training import fit
from hrseg_cli.training.step import ClickTraining, begun, make_optimizer, train_mode

__all__ = [
    "adapter",
    "model",
    "test_a_checkpoint_is_the_whole_model",
    "test_adapters",
    "test_answers_at_any_size",
    "test_answers_in_half_precision",
    "test_boxes_are_part_of_the_prompt",
    "test_costs_are_those_of_its_layers",
    "test_evaluates",
    "test_exports",
    "test_groups_and_names",
    "test_taps_are_what_adapters_read",
    "test_the_form_for_inference_answers_alike",
    "test_the_form_for_inference_is_asked_alike",
    "test_trains",
]

# Of lines that need options, and of large networks: small ones of the same kind.
SMALL_HRNET = {"width": 4, "ocr_width": 8, "small": True}
SMALL_CLICKNET = {
    "variant": "lite0",
    "widths": [8, 16, 24, 32, 32],
    "guide": [8, 8, 16, 16],
    "blocks": [1] * 4,
    "mixers": 1,
}
SMALL_SIMPLECLICK = {
    "width": 16,
    "depth": 4,
    "heads": 2,
    "size": [64, 64],
    "levels": [4, 8, 8, 8],
    "channels": 8,
}
SMALL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("h18s", "h18_baseline", "hrnet_ocr"), SMALL_HRNET),
    **dict.fromkeys(("clicknet_m", "clicknet"), SMALL_CLICKNET),
    **SMALL_ZOO,
    **dict.fromkeys(("simpleclick", "simpleclick_xtiny", "simpleclick_b"), SMALL_SIMPLECLICK),
    **dict.fromkeys(("simpleclick_l", "simpleclick_h"), SMALL_SIMPLECLICK),
}
NEEDED: dict[str, dict[str, Any]] = {"hrnet_ocr": SMALL_HRNET}

# All of the catalog as it is attached without options, and what options make of some.
ADAPTERS: list[Any] = [
    *((name, {}) for name in catalog.ADAPTERS),
    ("lora", {"layers": ["heads"]}),
    ("conv", {"design": "b", "width": 4, "first_layer": True}),
    ("conv", {"design": "c", "width": 4}),
    ("toast", {"select": "clicks", "passes": 1}),
    pytest.param(("lora", {"kind": "loralib", "rank": 2, "adabn": True}), marks=pytest.mark.slow),
    pytest.param(("conv", {"design": "a", "skip": True}), marks=pytest.mark.slow),
]


@pytest.fixture(params=ADAPTERS, ids=lambda one: "-".join(map(str, [one[0], *one[1].values()])))
def adapter(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    found: tuple[str, dict[str, Any]] = request.param
    return found


@pytest.fixture
def model(name: str) -> InteractiveModel:
    """Untrained; what starts at zero has some noise, or it would hide what comes before it."""
    torch.manual_seed(0)
    made: InteractiveModel = catalog.resolve("model", name)(**SMALL.get(name, {}))
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return made.eval()


def question(model: InteractiveModel, height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """An image with its previous answer, where the model looks at one, and clicks of both signs."""
    random = torch.Generator().manual_seed(height * width)
    image = torch.rand(batch, 3 + model.with_prev_mask, height, width, generator=random)
    place = torch.tensor([[height // 2, width // 3, 0], [-1, -1, -1], [height - 1, 0, 1], [-1, -1, -1]])
    return image, place.double().repeat(batch, 1, 1)


def answer(model: InteractiveModel, *size: int) -> Tensor:
    with torch.inference_mode():
        return model(*question(model, *size))["logits"]


def refused(what: Callable[[], Any]) -> bool:
    """Whether it ends with one line for the user. Anything else it ends with is a defect."""
    try:
        what()
    except HrsegError as error:
        line = str(error)
    else:
        return False
    assert len(line.splitlines()) == 1
    assert len(line) < 300
    return True


def recipe(model: InteractiveModel, *outputs: str) -> Recipe:
    terms = [{"name": "nfl"}, *({"name": "bce", "output": output} for output in outputs)]
    return recipe_of(
        {
            "name": "two steps",
            "data": {"parts": [{"dataset": "drawn"}], "crop": [32, 48]},
            "losses": terms,
            "batch": 2,
            "clicks": {"rounds": 1},
        },
        "test",
    )


def two_steps(model: InteractiveModel) -> None:
    """As ``hrseg train`` takes them: what is fixed stays, clicks follow the model's own answers, groups of rates."""
    for parameter in model.untrained():
        parameter.requires_grad_(False)
    train_mode(model, 2)
    with torch.no_grad():
        outputs = model(*question(model, 32, 48, 2))
    chosen = recipe(model, *(name for name in outputs if name != "logits"))
    fit.check_recipe(model, chosen)
    training = ClickTraining(model, chosen)
    optimizer = make_optimizer(model, chosen.optim)
    image, points = question(model, 32, 48, 2)
    truth = torch.zeros(2, 1, 32, 48, dtype=torch.int8)
    truth[:, :, 8:24, 10:40] = 1
    for step in range(2):
        key = torch.tensor([[0, step], [0, step + 1]])
        batch = {"image": (image[:, :3] * 255).byte(), "truth": truth, "points": points.float(), "key": key}
        current = begun(batch)
        training.interact(current, 1)
        train_mode(model, 2)
        total, _ = training.loss(training.predict(current), batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    model.eval()


def changes(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_groups_and_names(name: str) -> None:
    """At full size, without memory: what training, adapters, export and the commands ask a model about its layers."""
    with torch.device("meta"):
        model = catalog.resolve("model", name)(**NEEDED.get(name, {}))
    groups = model.parameter_groups()
    assert groups.keys() <= {"new", "heads", "backbone", "fixed"}
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(map(id, model.parameters()))
    layers = [
        layer for layer, module in adaptable(model).items() if not set(module.parameters()) & model.untrained()
    ]  # fmt: skip
    for layer in layers if model.layer_groups else ():
        patterns = [re.compile("|".join(words)) for words in model.layer_groups.values()]
        assert sum(bool(pattern.search(layer)) for pattern in patterns) == 1, layer
    assert set(model.precisions) <= set(PRECISIONS)
    assert "fp32" in model.precisions
    assert all(re.compile(pattern) for pattern in model.single_precision)
    if model.image_layer:
        first = model.get_submodule(model.image_layer)
        assert isinstance(first, nn.Conv2d)
        assert first.in_channels == 3


def test_a_checkpoint_is_the_whole_model(model: InteractiveModel, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "a.safetensors", {})
    read, _ = read_checkpoint(tmp_path / "a.safetensors")
    assert (type(read), read.name, read.config) == (type(model), model.name, json.loads(json.dumps(model.config)))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in read.state_dict().items())
    assert torch.equal(answer(read.eval(), 32, 40), answer(model, 32, 40))


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 48), (33, 47), (9, 7), (1, 20)])
def test_answers_at_any_size(model: InteractiveModel, size: tuple[int, int]) -> None:
    """``forward`` is ``decode`` after ``encode``; features serve many clicks, so an answer leaves them as they are."""
    image, points = question(model, *size, 2)
    logits = model(image, points)["logits"]
    assert (logits.shape, logits.dtype) == ((2, 1, *size), torch.float32)
    assert bool(torch.isfinite(logits).all())
    previous = image[:, 3:] if model.with_prev_mask else torch.zeros(2, 1, *size)
    features = model.encode(image[:, :3])
    kept = [part.clone() for part in features]
    nothing = torch.full_like(points, -1)
    model.decode(features, previous, nothing)
    assert torch.equal(model.decode(features, previous, points)["logits"], logits)
    assert all(torch.equal(part, other) for part, other in zip(features, kept, strict=True))
    assert all(len(part) == 2 for part in features)
    assert not torch.equal(model(image, nothing)["logits"], logits)


@torch.inference_mode()
def test_boxes_are_part_of_the_prompt(model: InteractiveModel, tmp_path: Path) -> None:
    """Where a model takes them: a row of -1 is no box, rows of a batch are apart, its other forms answer alike."""
    if not model.takes_boxes:
        return
    image, points = question(model, 48, 64, 2)
    boxes = torch.tensor([[8.0, 10, 30, 50], [-1, -1, -1, -1]])

    def boxed(one: InteractiveModel, boxes: Tensor | None) -> Tensor:
        return one.decode(one.encode(image[:, :3]), image[:, 3:], points, boxes)["logits"]

    found, plain = boxed(model, boxes), boxed(model, None)
    assert torch.equal(boxed(model, torch.full((2, 4), -1.0)), plain)
    assert not torch.allclose(found[0], plain[0], atol=1e-4)
    torch.testing.assert_close(found[1], plain[1], atol=1e-5, rtol=1e-5)
    spread = float(plain.max() - plain.min())
    assert float((boxed(fast(model), boxes) - found).abs().max()) < 1e-4 * spread
    export(model, tmp_path / "model.onnx", {})
    graph, _ = open_model(str(tmp_path / "model.onnx"))
    assert graph.takes_boxes
    torch.testing.assert_close(boxed(graph, boxes), found, atol=1e-4, rtol=0)
    torch.testing.assert_close(boxed(graph, None), plain, atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 48), (33, 47)])
def test_taps_are_what_adapters_read(model: InteractiveModel, size: tuple[int, int]) -> None:
    image, points = question(model, *size)
    if not model.taps:
        return
    found = model.tapped(image, points)
    torch.testing.assert_close(found["logits"], model(image, points)["logits"], atol=1e-5, rtol=1e-5)
    half = tuple(-(-side // 2) for side in size)
    for tap, place in (("stem", half), ("fine", tuple(-(-side // 2) for side in half))):
        assert found[tap].shape == (1, model.taps[tap], *place)
    added = model.tapped(image, points, torch.ones_like(found["stem"]))
    assert torch.equal(added["stem"], found["stem"])
    assert not torch.equal(added["logits"], found["logits"])


def test_trains(model: InteractiveModel) -> None:
    if refused(lambda: fit.check_recipe(model, recipe(model))):
        assert next(model.parameters(), None) is None
        return
    before = copy.deepcopy(model.state_dict())
    two_steps(model)
    untrained = model.untrained()
    names = {name: parameter in untrained for name, parameter in model.named_parameters()}
    moved = changes(before, model)
    assert not any(still and name in moved for name, still in names.items())
    alive = [name for name, still in names.items() if not still]
    assert len(moved & set(alive)) > 0.9 * len(alive)  # a bias before a normalisation may get no gradient
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def test_evaluates(model: InteractiveModel, name: str, tmp_path: Path) -> None:
    """Two drawn objects, as the commands click on them: crops, mirror images, the form for inference."""
    spec = name if model.weightless else str(tmp_path / "model.safetensors")
    save_checkpoint(model, tmp_path / "model.safetensors", {})
    protocol = load_protocol("photo", ["zoom.target=48", "zoom.min_crop=30"])
    refs = open_dataset("procedural:count=2,size=64,seed=3")
    traces = [outcome.trace for _, outcome in run(Plan(protocol, {"iou": 2.0}, 2), ModelChoice(spec), refs, 1)]
    assert [len(trace.clicks) for trace in traces] == [2, 2]
    assert all(0 <= score <= 1 for trace in traces for score in trace.scores["iou"])


def test_the_form_for_inference_answers_alike(model: InteractiveModel) -> None:
    for size in ((40, 56), (33, 47)):
        plain = answer(model, *size)
        spread = max(float(plain.max() - plain.min()), 0.1)
        assert float((answer(fast(model), *size) - plain).abs().max()) < 1e-4 * spread


def test_the_form_for_inference_is_asked_alike(model: InteractiveModel) -> None:
    """A form that forgot that it takes boxes would be given clicks instead, and answer without an error."""
    quick = fast(model)
    assert {name: getattr(quick, name) for name in ASKED} == {name: getattr(model, name) for name in ASKED}
    if not model.takes_boxes:
        return
    image, points = question(model, 40, 56)
    box, previous = torch.tensor([[5.0, 8.0, 30.0, 41.0]]), torch.zeros(1, 1, 40, 56)
    with torch.inference_mode():
        plain, found = (
            one.decode(one.encode(image[:, :3]), previous, torch.full_like(points, -1), box)["logits"]
            for one in (model.eval(), quick)
        )
    assert float((found - plain).abs().max()) < 1e-4 * max(float(plain.max() - plain.min()), 0.1)


def test_answers_in_half_precision(model: InteractiveModel) -> None:
    """Never the answers of single precision under another name."""
    plain = answer(model, 40, 56)
    if refused(lambda: fast(model, "bf16")):
        assert "bf16" not in model.precisions or not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return
    lowered = fast(model, "bf16")
    found = answer(lowered, 40, 56)
    with torch.inference_mode():
        image, points = question(model, 40, 56)
        previous = image[:, 3:] if model.with_prev_mask else torch.zeros(1, 1, 40, 56)
        assert torch.equal(lowered.decode(lowered.encode(image[:, :3]), previous, points)["logits"], found)
    assert found.dtype == torch.float32
    assert not torch.equal(found, plain)
    assert float((found - plain).abs().max()) < 0.25 * max(float(plain.max() - plain.min()), 0.1)
    assert torch.equal(answer(model, 40, 56), plain)


def test_adapters(model: InteractiveModel, adapter: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """Attached, it answers as its base; trained, saved, loaded, merged where that can be. Nothing else of the model
    moves."""
    kind, options = adapter
    base = copy.deepcopy(model)
    adapted: InteractiveModel

    def try_it() -> None:
        nonlocal adapted
        adapted = attach(model, kind, options)

    if refused(try_it):
        assert all(torch.equal(value, base.state_dict()[key]) for key, value in model.state_dict().items())
        return
    with torch.no_grad():  # conv answers as its base does to the image at half the size
        start = adapted(*question(base, 40, 56))
        plain = start["base"] if kind == "conv" else base(*question(base, 40, 56))["logits"]
    torch.testing.assert_close(start["logits"], plain, rtol=1e-5, atol=1e-6)
    wanted = set(adapter_state(adapted))
    before = copy.deepcopy(adapted.state_dict())
    two_steps(adapted)
    moved = changes(before, adapted)
    assert moved
    assert moved <= wanted == set(adapter_state(adapted))
    # LoRA on layers that are zero, as a new feedback path's, needs a third step to reach all of its factors.
    lora = {key for key in wanted if "lora_" in key and not key.startswith("path.")}
    assert lora | {key for key in wanted if key.startswith(("correct.", "up.", "down."))} <= moved

    save_checkpoint(base, tmp_path / "base.safetensors", {})
    save_adapter(adapted, tmp_path / "adapter.safetensors", kind, options, weights_hash(base), {})
    loaded, provenance = load_model(f"{tmp_path / 'base.safetensors'}+{tmp_path / 'adapter.safetensors'}")
    assert provenance["adapter"]["name"] == kind
    trained = answer(adapted, 40, 56)
    assert torch.equal(answer(loaded, 40, 56), trained)
    spread = max(float(trained.max() - trained.min()), 0.1)
    assert float((answer(fast(loaded), 40, 56) - trained).abs().max()) < 1e-4 * spread
    if not refused(lambda: merged(loaded)):
        assert list(loaded.state_dict()) == list(base.state_dict())
        assert [type(module) for module in loaded.modules()] == [type(module) for module in base.modules()]
        assert float((answer(loaded, 40, 56) - trained).abs().max()) < 1e-4 * spread


def test_exports(model: InteractiveModel, tmp_path: Path) -> None:
    """ONNX Runtime answers as PyTorch at sizes that the exporter has not seen, small ones too."""
    path = tmp_path / "model.onnx"
    if refused(lambda: export(model, path, {})):
        assert next(model.parameters(), None) is None
        assert not path.exists()
        return
    graph, _ = open_model(str(path))
    for size in ((67, 84), (20, 33), (9, 7)):
        torch.testing.assert_close(answer(graph, *size), answer(model, *size), atol=1e-4, rtol=0)


class Products(TorchFunctionMode):
    """Counts multiplications from the shapes of the functions that a network calls, each by its own formula."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__
        if name in ("conv2d", "linear"):
            self.total += out.numel() * args[1][0].numel()
        elif name == "conv_transpose2d":
            self.total += args[0].numel() * args[1][0].numel()
        elif name in ("matmul", "__matmul__", "bmm"):
            self.total += out.numel() * args[0].shape[-1]
        elif name == "einsum":
            sizes: dict[str, int] = {}
            for letters, tensor in zip(args[0].partition("->")[0].split(","), args[1:], strict=True):
                sizes |= dict(zip(letters, tensor.shape, strict=True))
            self.total += math.prod(sizes.values())
        elif name == "scaled_dot_product_attention":
            query, key, value = args[:3]
            self.total += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        elif name == "multi_head_attention_forward":  # (tokens, batch, width), of equal widths
            query, key = args[:2]
            width = query.shape[-1]
            self.total += 2 * (query.numel() + key.numel()) * width + 2 * query.numel() * key.shape[0]
        return out


def test_costs_are_those_of_its_layers(model: InteractiveModel) -> None:
    image, points = question(model, 48, 64)
    with torch.inference_mode(), Products() as counted:
        model(image, points[:, ::2])  # one slot of either sign, as gmac has
    assert gmac(model, (48, 64)) == pytest.approx(counted.total / 1e9, rel=1e-9)
    assert (counted.total > 0) == (next(model.parameters(), None) is not None)
