"""The networks of ``hrseg_cli.models.zoo``: published numbers of parameters, sizes, gradients, and public weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from small_zoo import SMALL_ZOO
from torch import Tensor, nn

from hrseg_cli import catalog
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.engine.cost import gmac
from hrseg_cli.engine.fast import fast
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.parts.backbones import BUILDERS, build
from hrseg_cli.models.parts.backbones.hrnet import HRNet
from hrseg_cli.models.parts.backbones.resnet import ResNet
from hrseg_cli.models.parts.backbones.vgg import VGG
from hrseg_cli.models.parts.meta import shapes_only
from hrseg_cli.models.zoo import (
    context,
    deeplab,
    fcn,
    fpn,
    gridnet,
    hrnet_heads,
    refinement,
    sliding,
    tiramisu,
    unet,
    unpooling,
)

ZOO = [name for name, target in catalog.MODELS.items() if ".zoo." in target]

# In the configuration of the source: RGB, its backbone and number of classes, without clicks.
# name: source, parameters there, relative tolerance (its rounding), our network. "computed": none is published, this
# one is the sum over the layers that the source describes.
TORCHVISION, SMP = "torchvision 0.15, num_params", "segmentation_models.pytorch, issue 819"
PUBLISHED: dict[str, tuple[str, float, float, Callable[[], list[nn.Module]]]] = {
    "vgg11": (TORCHVISION, 132_868_840 - 123_642_856, 0, lambda: [VGG(11)]),  # less the classifier
    "vgg16": (TORCHVISION, 138_365_992 - 123_642_856, 0, lambda: [VGG(16)]),
    "resnet18": (TORCHVISION, 11_689_512 - 513_000, 0, lambda: [ResNet(18)]),
    "resnet50": (TORCHVISION, 25_557_032 - 2_049_000, 0, lambda: [ResNet(50)]),
    "resnet101": (TORCHVISION, 44_549_160 - 2_049_000, 0, lambda: [ResNet(101)]),
    "fcn_8s": ("Long et al. 2015, table 1", 134e6, 0.005, lambda: with_vgg(fcn.FCN, 21, 2)),
    "deconvnet": ("Noh et al. 2015, section 5", 252e6, 0.002, lambda: mirrored(unpooling.DeconvNet, 21)),
    "segnet": ("Paszke et al. 2016 (ENet), table 3", 29.5e6, 0.002, lambda: mirrored(unpooling.SegNet, 12)),
    "unet": ("Zhou et al. 2018 (UNet++), table 3", 7.76e6, 0.001, lambda: plain(unet.UNet)),
    "unet_plusplus": ("Zhou et al. 2018, table 3", 9.04e6, 0.001, lambda: plain(unet.UNetPlusPlus)),
    "ternausnet": (
        "computed from ternaus/TernausNet, UNet11",
        22_927_393,
        0,
        lambda: [VGG(11, norm=False), unet.TernausNet(1)],
    ),
    "linknet": ("Chaurasia and Culurciello 2017, table II", 11.5e6, 0.01, lambda: on(18, refinement.LinkNet, 20)),
    "refinenet": (
        "Nekrasov et al. 2018, table 1",
        118e6,
        0.005,
        lambda: on(101, refinement.RefineNet, 21),
    ),
    "fc_densenet103": (
        "Jégou et al. 2017, table 3",
        9.4e6,
        0.01,
        lambda: [tiramisu.FCDenseNet(11, [4, 5, 7, 10, 12, 15], 16)],
    ),
    "frrn_a": ("Pohlen et al. 2017, section 5", 17.7e6, 0.002, lambda: [gridnet.FRRN(19, gridnet.FRRN_A)]),
    "deeplab_v1": (
        "Chen et al. 2015, table 2 (LargeFOV)",
        20.5e6,
        0.002,
        lambda: [VGG(16, norm=False), deeplab.LargeFieldOfView(512, 21, 1024, [12])],
    ),
    "deeplab_v3": (TORCHVISION, 42_004_074, 0, lambda: on(50, deeplab.DeepLabV3, 21)),
    # Ours normalises after depthwise convolutions too, as the paper does: 13,408 more.
    "deeplab_v3plus": (SMP, 26_682_725 + 13_408, 0, lambda: on(50, deeplab.DeepLabV3Plus, 21)),
    "pspnet": (
        "computed from mmsegmentation's PSPHead and FCNHead, on torchvision's ResNet-50",
        23_508_032
        + 4 * (2048 * 512 + 2 * 512)
        + 9 * 4096 * 512
        + 2 * 512
        + 513 * 19
        + 9 * 1024 * 256
        + 2 * 256
        + 257 * 19,
        0,
        lambda: on(50, context.PSP, 19),
    ),
    "semantic_fpn": ("Wang et al. 2021 (PVT), table 4", 28.5e6, 0.001, lambda: on(50, fpn.SemanticFPN, 150)),
    "lraspp": (TORCHVISION, 3_221_538 - 2_971_952, 0, lambda: [context.LRASPP(40, 960, 21)]),  # less MobileNetV3
    "hrnet_v2": (
        "HRNet-Semantic-Segmentation, branch pytorch-v1.1, HRNetV2-W18-Small-v2",
        3.9e6,
        0.0125,
        lambda: hrnet(hrnet_heads.HRNetHead, 19, True),
    ),
}


def on(depth: int, decoder: Any, classes: int) -> list[nn.Module]:
    base = ResNet(depth)
    return [base, decoder(base.channels, classes)]


def with_vgg(decoder: Any, *options: Any) -> list[nn.Module]:
    base = VGG(16, norm=False)
    return [base, decoder(base.channels, *options)]


def mirrored(decoder: Any, classes: int) -> list[nn.Module]:
    base = VGG(16)
    return [base, decoder(base.convolutions, classes)]


def plain(decoder: Any) -> list[nn.Module]:
    base = unet.Contracting(32, norm=False)
    return [base, decoder(base.channels, 1, norm=False)]


def hrnet(decoder: Any, *options: Any) -> list[nn.Module]:
    base = HRNet(18, small=True)
    return [base, decoder(base.channels, *options)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_as_published(name: str) -> None:
    _, wanted, tolerance, parts = PUBLISHED[name]
    with shapes_only():
        found = sum(parameter.numel() for part in parts() for parameter in part.parameters())
    assert found == pytest.approx(wanted, rel=tolerance or 1e-12)


def clicked(*size: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    points = torch.tensor([[[size[0] // 2, size[1] // 3, 0], [-1, -1, -1]]]).double()
    return torch.rand(batch, 4, *size), points.repeat(batch, 1, 1)


def small(name: str) -> Any:
    torch.manual_seed(0)
    return catalog.resolve("model", name)(**SMALL_ZOO[name])


def reaches_all(name: str, size: tuple[int, int]) -> None:
    """Every output has the image's size, and they have a gradient for every parameter."""
    model = small(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)  # what starts at zero would hide what comes before it
    image, points = clicked(*size, batch=2)
    outputs = model.train()(image, points)
    assert all(value.shape == (2, 1, *size) for value in outputs.values())
    torch.stack([value.square().mean() for value in outputs.values()]).sum().backward()
    dead = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not [name for name in dead if not any(part in name for part in model.unused)]


def test_small_options_cover_the_zoo() -> None:
    assert sorted(SMALL_ZOO) == sorted(ZOO)


@pytest.mark.parametrize("name", ["deeplab_v3plus", "unet"])
def test_gradient_reaches_every_parameter(name: str) -> None:
    reaches_all(name, (32, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_gradient_reaches_every_parameter_of_all(name: str) -> None:
    reaches_all(name, (64, 96))


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("name", ZOO)
def test_any_size(name: str) -> None:
    model = small(name).eval()
    for size in ((32, 32), (33, 1000), (1000, 32), (97, 131), (416, 416)):
        assert model(*clicked(*size))["logits"].shape == (1, 1, *size)


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("name", "stride"), [*product(BUILDERS, (32,)), *product(("resnet18", "vgg11"), (8, 16))])
def test_pyramids(name: str, stride: int) -> None:
    base = build(name, stride).eval()
    stem = base.stem_features(base.normalised(torch.rand(1, 3, 96, 64)))
    assert stem.shape == (1, base.stem_channels, 96 // base.stem_stride, 64 // base.stem_stride)
    for channels, wanted, one in zip(base.channels, (2, 4, 8, 16, 32), base.pyramid(stem), strict=True):
        step = min(wanted, stride)
        assert one.shape == (1, channels, 96 // step, 64 // step)
    assert isinstance(base.get_submodule(base.image_layer), nn.Conv2d)


@torch.no_grad()
@pytest.mark.parametrize(("name", "stride"), [("resnet18", 8), ("efficientnet_lite0", 16)])
def test_dilated_features_are_the_strided_ones_and_those_between(name: str, stride: int) -> None:
    """The à trous identity: of a dilated network every second (or fourth) output is that of the strided one."""
    torch.manual_seed(0)
    strided, dilated = build(name).eval(), build(name, stride, smooth=True).eval()
    dilated.load_state_dict(strided.state_dict(), strict=False)  # the smoothing starts as the identity
    x = strided.stem_features(torch.randn(1, 3, 64, 96))
    step = 32 // stride
    for wanted, found in zip(strided.pyramid(x)[3:], dilated.pyramid(x)[3:], strict=True):
        found = found[..., :: found.shape[-2] // wanted.shape[-2], :: found.shape[-1] // wanted.shape[-1]]
        torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4)
    assert dilated.pyramid(x)[4].shape[-1] == step * strided.pyramid(x)[4].shape[-1]


def torchvision_names(name: str) -> list[str]:
    """The names in torchvision's state dict, without the counters of batches."""
    norm = ("weight", "bias", "running_mean", "running_var")
    if name.startswith("vgg"):
        convolutions = {  # of vgg11_bn and vgg16_bn
            "vgg11": (0, 4, 8, 11, 15, 18, 22, 25),
            "vgg16": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
        }[name]
        inner = [f"features.{n}.{part}" for n in convolutions for part in ("weight", "bias")]
        inner += [f"features.{n + 1}.{part}" for n in convolutions for part in norm]
        return [*inner, *(f"classifier.{n}.{part}" for n in (0, 3, 6) for part in ("weight", "bias"))]
    blocks, convs = {"resnet18": ((2, 2, 2, 2), 2), "resnet50": ((3, 4, 6, 3), 3)}[name]
    names = ["conv1.weight", *(f"bn1.{part}" for part in norm), "fc.weight", "fc.bias"]
    for layer, count in enumerate(blocks, 1):
        for block in range(count):
            place = f"layer{layer}.{block}"
            for conv in range(1, convs + 1):
                names += [f"{place}.conv{conv}.weight", *(f"{place}.bn{conv}.{part}" for part in norm)]
            if block == 0 and (layer > 1 or name == "resnet50"):
                names += [f"{place}.downsample.0.weight", *(f"{place}.downsample.1.{part}" for part in norm)]
    return names


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "resnet18", "resnet50"])
def test_names_are_those_of_torchvision(name: str) -> None:
    with shapes_only():
        base = build(name)
    heads = base.classifier
    wanted = {one for one in torchvision_names(name) if not one.startswith(heads)}
    assert {one for one in base.state_dict() if not one.endswith("num_batches_tracked")} == wanted


def test_imagenet_weights_are_all_used_or_refused() -> None:
    model = catalog.resolve("model", "lraspp")(backbone="resnet18", width=8)
    state = {key: torch.rand(value.shape) for key, value in build("resnet18").state_dict().items() if value.ndim}
    public = {**state, "fc.weight": torch.rand(1000, 512), "fc.bias": torch.rand(1000)}
    assert model.initialise(public, 0.8) == 1.0
    assert torch.equal(model.encoder.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert set(model.parameter_groups()["backbone"]) == set(model.encoder.parameters())
    for spoilt in (
        {key: value for key, value in public.items() if key != "bn1.weight"},
        {**public, "layer5.0.conv1.weight": torch.rand(1)},
        {**public, "conv1.weight": torch.rand(64, 4, 7, 7)},
    ):
        with pytest.raises(HrsegError, match=r"is .* in the file and .* in the network"):
            model.initialise(spoilt, 0.8)
    with pytest.raises(HrsegError, match="does not support a pretrained backbone"):
        small("vnet").initialise(public, 0.8)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet", {"width": -1}),
        ("unet", {"width": 0}),
        ("deeplab_v2", {"rates": [1] * 17}),
        ("deeplab_v2", {"rates": [6, 65]}),
        ("deeplab_v2", {"rates": []}),
        ("deeplab_v2", {"rates": [6.5]}),
        ("deeplab_v1", {"rate": 8192}),
        ("unet", {"width": 8.5}),
        ("fcn_8s", {"kernel": 4}),
        ("gridnet", {"widths": [8]}),
        ("unet_plusplus", {"level": 5}),
        ("unet", {"valid": True, "backbone": "vgg11"}),
        ("linknet", {"upsampling": "magic"}),
        ("hierarchical_attention", {"scales": [1, 0.5]}),
        ("pspnet", {"output_stride": 4}),
        ("fcn_8s", {"width": 10**6}),
        ("unet", {"backbone": "vgg16x"}),
        ("segnet", {"backbone": "resnet18"}),
        ("hrnet_v1", {"backbone": "resnet18"}),
        ("deeplab_v3", {"backbone": "hrnet18"}),
    ],
)
def test_impossible_options(name: str, options: dict[str, Any]) -> None:
    with shapes_only(), pytest.raises((ValueError, HrsegError)) as caught:
        catalog.resolve("model", name)(**options)
    assert len(str(caught.value).splitlines()) == 1


def test_every_network_has_a_paper_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()
    assert not [name for name in ZOO if f"`{name}`" not in text]


def test_no_weights_are_shipped() -> None:
    with pytest.raises(HrsegError, match="ships no weights"):
        load_model("unet")


@torch.inference_mode()
def test_pruning_gives_the_answer_of_a_shallower_network_for_less() -> None:
    model = small("unet_plusplus").eval()
    image, points = clicked(48, 64)
    all_heads = model(image, points)
    mean = torch.stack([all_heads[f"aux{level}"] for level in (1, 2, 3, 4)]).mean(0)
    torch.testing.assert_close(all_heads["logits"], mean)
    model.decoder.level = 2
    pruned = fast(model)(image, points)
    assert list(pruned) == ["logits"]
    torch.testing.assert_close(pruned["logits"], all_heads["aux2"], atol=1e-4, rtol=1e-4)


def test_inference_leaves_out_what_only_training_needs() -> None:
    model = small("deeplab_v3").eval()
    quick = fast(model)
    image, points = clicked(32, 64)
    with torch.inference_mode():
        assert set(model(image, points)) == {"logits", "aux"}
        assert set(quick(image, points)) == {"logits"}
    assert model.decoder.with_aux


def test_streams_are_dropped_in_training_only() -> None:
    model = catalog.resolve("model", "gridnet")(**SMALL_ZOO["gridnet"], dropped=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    image, points = clicked(32, 32)
    torch.manual_seed(0)
    one, other = (model.train()(image, points)["logits"] for _ in range(2))
    assert not torch.equal(one, other)
    model.eval()
    assert torch.equal(model(image, points)["logits"], model(image, points)["logits"])


def test_clicks_move_with_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A click lies on the centre of its pixel: (9, 21) of an image is between (4, 10) and (4.5, 10.5) at half size."""
    model = catalog.resolve("model", "hierarchical_attention")(**SMALL_ZOO["hierarchical_attention"], chain=[0.5, 1.0])
    seen = []
    answers = model.answers
    monkeypatch.setattr(model, "answers", lambda image, points: [seen.append(points), answers(image, points)][1])
    points = torch.tensor([[[9.0, 21.0, 0.0], [0.0, 0.0, 1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]])
    with torch.no_grad():
        model.eval()(torch.rand(1, 4, 32, 32), points)
    half, whole = seen
    assert whole is points
    assert half[0].tolist() == [[4.25, 10.25, 0], [0, 0, 1], [-1, -1, -1], [-1, -1, -1]]


@torch.inference_mode()
def test_chained_scales_mix_by_the_attention_of_the_smaller() -> None:
    """Attention of 1 gives the answer at half the size, attention of 0 that at full size."""
    model = catalog.resolve("model", "hierarchical_attention")(**SMALL_ZOO["hierarchical_attention"], chain=[0.5, 1.0])
    model.eval()
    image, points = clicked(64, 96)
    alone = {scale: model._answers_at(scale, image, points)["logits"] for scale in (0.5, 1.0)}
    for bias, scale in ((50.0, 0.5), (-50.0, 1.0)):
        model.decoder.attend[-1].weight.zero_()
        model.decoder.attend[-1].bias.fill_(bias)
        torch.testing.assert_close(model(image, points)["logits"], alone[scale])


@torch.inference_mode()
def test_a_network_without_padding_sees_the_mirrored_image() -> None:
    """A valid U-Net answers as the same network with padding, far from the border, and at the image's size."""
    valid = catalog.resolve("model", "unet")(width=4, valid=True).eval()
    padded = catalog.resolve("model", "unet")(width=4).eval()
    padded.load_state_dict(valid.state_dict())
    image, points = clicked(256, 256)
    found, other = (model(image, points)["logits"] for model in (valid, padded))
    assert found.shape == other.shape
    torch.testing.assert_close(found[..., 112:144, 112:144], other[..., 112:144, 112:144], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[..., :32, :32], other[..., :32, :32], atol=1e-3)


@torch.inference_mode()
def test_a_sliding_window_sees_the_window_alone() -> None:
    """The answer at a pixel of the image is that in the middle of its window, seen as an image of its own."""
    model = small("pixel_classifier").eval()
    side, row, col = sliding.WINDOW, 60, 75
    half = side // 2
    torch.manual_seed(1)
    image = torch.rand(1, 4, 128, 160)
    points = torch.tensor([[[row + 9.0, col - 20, 0], [row - 30, col + 5, 1]]])
    top, left = row - half, col - half
    window = image[..., top : top + side, left : left + side]
    found = model(window, points - torch.tensor([top, left, 0]))["logits"][..., half, half]
    torch.testing.assert_close(found, model(image, points)["logits"][..., row, col])
    changed = image.clone()
    changed[..., top - 1, :] += 1
    changed[..., :, left + side] += 1
    answers = [fast(model)(one, points)["logits"] for one in (image, changed)]
    torch.testing.assert_close(answers[0][..., row, col], answers[1][..., row, col])
    assert not torch.equal(answers[0][..., row - 1, col], answers[1][..., row - 1, col])


def test_smoothing_costs_little() -> None:
    with shapes_only():
        plain, smooth = (catalog.resolve("model", "deeplab_v3plus")(width=8, smooth=on) for on in (False, True))
    more = sum(p.numel() for p in smooth.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 4 * 9  # one kernel of 3x3 for each dilated layer at rate 2: three of level 32, and the last block's
    assert gmac(small("lraspp"), (32, 32)) > 0
