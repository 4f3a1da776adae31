"""Parts of the zoo's networks that have a definition, against that definition written out slowly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones.dilation import SmoothedConv
from hrseg_cli.models.parts.backbones.efficientnet_lite import Depthwise
from hrseg_cli.models.parts.backbones.vgg import Stage
from hrseg_cli.models.parts.deformable import DeformableConv, deformable_conv2d
from hrseg_cli.models.parts.stem import mirrored
from hrseg_cli.models.zoo.context import JPU, ChannelAttention, Encoding, PositionAttention, PyramidPooling
from hrseg_cli.models.zoo.deeplab import ASPP
from hrseg_cli.models.zoo.layers import BilinearUp, _cells, pooled_to, upsampled
from hrseg_cli.models.zoo.unpooling import unpooled

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)


def convolved(x: np.ndarray, weight: np.ndarray, rate: int = 1) -> np.ndarray:
    """(C, H, W) with (out, C, k, k): a convolution of the same size, pixel by pixel, with zeros around."""
    _, height, width = x.shape
    side = weight.shape[-1]
    out = np.zeros((len(weight), height, width))
    for row in range(height):
        for col in range(width):
            for down in range(side):
                for across in range(side):
                    r, c = row + rate * (down - side // 2), col + rate * (across - side // 2)
                    if 0 <= r < height and 0 <= c < width:
                        out[:, row, col] += weight[:, :, down, across] @ x[:, r, c]
    return out


def with_statistics(module: nn.Module) -> nn.Module:
    """In evaluation, with normalisations that do something."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return module.eval()


def normed(x: np.ndarray, norm: nn.Module) -> np.ndarray:
    """Batch normalisation and ReLU."""
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = (part.numpy()[:, None, None] for part in (norm.running_mean, norm.running_var))
    return np.maximum((x - mean) / np.sqrt(variance + norm.eps), 0)


def bilinear(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, H, W) at another size; the centre of pixel i of n lies at (i + 0.5) / n."""
    for axis, to in ((1, size[0]), (2, size[1])):
        number = x.shape[axis]
        place = np.clip((np.arange(to) + 0.5) * number / to - 0.5, 0, number - 1)
        before = np.floor(place).astype(int)
        after, share = np.minimum(before + 1, number - 1), place - before
        share = share[:, None] if axis == 1 else share
        x = x.take(before, axis) * (1 - share) + x.take(after, axis) * share
    return x


def close(found: Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-5, rtol=1e-4)


def test_unpooling() -> None:
    x = torch.randn(2, 3, 6, 8)
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    found = unpooled(pooled, Stage(x, pooled, indices)).numpy()
    for image, channel, row, col in np.ndindex(2, 3, 3, 4):
        cell = x[image, channel, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].numpy()
        wanted = np.where(cell == cell.max(), cell, 0)
        assert np.array_equal(found[image, channel, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2], wanted)


@torch.no_grad()
def test_aspp() -> None:
    module = with_statistics(ASPP(3, 2, (1, 2)))
    x = torch.randn(1, 3, 5, 7)
    branches = [
        normed(convolved(x[0].numpy(), conv.weight.numpy(), rate), norm)
        for (conv, norm, _), rate in zip(module.branches, (1, 1, 2), strict=True)
    ]
    mean = x[0].mean((1, 2), keepdim=True).numpy()
    pooled = normed(convolved(mean, module.pooled[0].weight.numpy()), module.pooled[1])
    joined = np.concatenate([*branches, np.broadcast_to(pooled, (2, 5, 7))])
    close(module(x)[0], normed(convolved(joined, module.project[0].weight.numpy()), module.project[1]))


@torch.no_grad()
def test_smoothed_dilation() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=2, dilation=2, bias=False)
    module = SmoothedConv(conv)
    x = torch.randn(1, 2, 6, 5)
    torch.testing.assert_close(module(x), conv(x))
    module.smoother.normal_()
    kernel = module.smoother[0, 0].numpy()
    smooth = np.concatenate([convolved(one[None], kernel[None, None]) for one in x[0].numpy()])
    close(module(x)[0], convolved(smooth, conv.weight.numpy(), 2))


@pytest.mark.parametrize("size", [(5, 7), (3, 2), (12, 6)])
def test_means_over_a_grid(size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *size)
    for bins in (1, 2, 3, 6):
        wanted = np.zeros((2, bins, bins))
        for row, col in np.ndindex(bins, bins):
            rows = slice(row * size[0] // bins, -(-(row + 1) * size[0] // bins))
            cols = slice(col * size[1] // bins, -(-(col + 1) * size[1] // bins))
            wanted[:, row, col] = x[0, :, rows, cols].numpy().mean((1, 2))
        close(pooled_to(x, bins)[0], wanted)
        rows, cols = (_cells(side, bins, x.device) for side in size)
        close((rows @ x @ cols.T)[0], wanted)  # the form for export


def test_gradients_of_depthwise_convolutions_are_not_rounded_to_bf16() -> None:
    """In training on a CPU; the features stay in bf16."""
    layer = Depthwise(16, 5, 2)
    x = torch.randn(2, 16, 9, 12, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        with torch.no_grad():
            assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 2, groups=16))
    upstream = torch.randn_like(y)
    y.backward(upstream)
    exact = x.detach().float().requires_grad_()
    expected = F.conv2d(exact, layer.weight, layer.bias, 2, 2, groups=16)
    wanted = torch.autograd.grad(expected, (layer.weight, exact), upstream.float())
    assert torch.equal(y, expected.bfloat16())
    torch.testing.assert_close(layer.weight.grad, wanted[0], rtol=1e-6, atol=1e-6)
    assert x.grad is not None
    assert torch.equal(x.grad, wanted[1].bfloat16())


@torch.no_grad()
def test_pyramid_pooling() -> None:
    module = with_statistics(PyramidPooling(4))
    x = torch.randn(1, 4, 6, 7)
    parts = [x[0].numpy()]
    for bins, (conv, norm, _) in zip((1, 2, 3, 6), module.pooled, strict=True):
        means = pooled_to(x, bins)[0].numpy()
        parts.append(bilinear(normed(convolved(means, conv.weight.numpy()), norm), (6, 7)))
    close(module(x)[0], np.concatenate(parts))


@torch.no_grad()
def test_position_attention() -> None:
    module = PositionAttention(8, reduction=4)
    module.gamma.fill_(0.7)
    x = torch.randn(2, 8, 3, 4)
    for image in range(2):
        query, key, value = (
            layer(x[image : image + 1])[0].flatten(1).numpy() for layer in (module.query, module.key, module.value)
        )
        wanted = x[image].flatten(1).numpy().copy()
        for here in range(12):
            weights = np.exp([query[:, here] @ key[:, there] for there in range(12)])
            wanted[:, here] += 0.7 * (value * (weights / weights.sum())).sum(1)
        close(module(x)[image].flatten(1), wanted)


@torch.no_grad()
def test_channel_attention() -> None:
    module = ChannelAttention()
    module.gamma.fill_(0.7)
    x = torch.randn(1, 4, 2, 3)
    flat = x[0].flatten(1).numpy()
    wanted = flat.copy()
    for here in range(4):
        weights = np.exp([-(flat[here] @ flat[there]) for there in range(4)])  # less alike, more weight
        wanted[here] += 0.7 * (weights / weights.sum()) @ flat
    close(module(x)[0].flatten(1), wanted)


def test_deformable_convolution_without_offsets_is_a_convolution() -> None:
    x, weight, bias = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
    plain = F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(deformable_conv2d(x, torch.zeros(2, 18, 5, 7), weight, bias), plain, atol=1e-4, rtol=0)
    module = DeformableConv(3, 4)
    torch.testing.assert_close(module(x), F.conv2d(x, module.weight, padding=1), atol=1e-4, rtol=0)


def test_deformable_convolution_with_whole_offsets_reads_shifted_pixels() -> None:
    """Each tap has offsets of its own, so each must read the input shifted by them, with zeros beyond."""
    x, weight = torch.randn(1, 2, 6, 5), torch.randn(3, 2, 3, 3)
    moves = torch.randint(-2, 3, (9, 2))
    offsets = moves.reshape(1, 18, 1, 1).expand(-1, -1, 6, 5).float()
    wide = F.pad(x, (3, 3, 3, 3))
    wanted = torch.zeros(1, 3, 6, 5)
    for tap, (down, right) in enumerate(moves.tolist()):
        row, col = 3 + tap // 3 - 1 + down, 3 + tap % 3 - 1 + right
        read = wide[:, :, row : row + 6, col : col + 5]
        wanted += torch.einsum("bchw,oc->bohw", read, weight[:, :, tap // 3, tap % 3])
    torch.testing.assert_close(deformable_conv2d(x, offsets, weight), wanted, atol=1e-4, rtol=0)


def test_deformable_convolution_between_pixels() -> None:
    """Half a pixel to the right is the mean of two neighbours."""
    x, weight = torch.randn(1, 1, 4, 6), torch.ones(1, 1, 1, 1)
    offsets = torch.stack([torch.zeros(4, 6), torch.full((4, 6), 0.5)])[None]
    wanted = (x + F.pad(x, (0, 1))[..., 1:]) / 2
    torch.testing.assert_close(deformable_conv2d(x, offsets, weight), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_joint_pyramid_upsampling() -> None:
    module = with_statistics(JPU((2, 3, 4), 2))
    maps = [torch.randn(1, 2, 8, 8), torch.randn(1, 3, 4, 4), torch.randn(1, 4, 2, 2)]
    entered = [
        bilinear(normed(convolved(one[0].numpy(), conv.weight.numpy()), norm), (8, 8))
        for one, (conv, norm, _) in zip(maps, module.enter, strict=True)
    ]
    joined = np.concatenate(entered)
    wanted = []
    for rate, (depthwise, norm, _, pointwise, last, _) in zip((1, 2, 4, 8), module.dilated, strict=True):
        each = [convolved(joined[c : c + 1], depthwise.weight[c : c + 1].numpy(), rate) for c in range(6)]
        wanted.append(normed(convolved(normed(np.concatenate(each), norm), pointwise.weight.numpy()), last))
    close(module(maps)[0], np.concatenate(wanted))


@torch.no_grad()
def test_encoding() -> None:
    module = Encoding(3, codewords=4)
    x = torch.randn(1, 3, 2, 5)
    pixels = x[0].flatten(1).T.numpy()
    words, scale = module.codewords.numpy(), module.scale.numpy()
    wanted = np.zeros((4, 3))
    for pixel in pixels:
        weight = np.exp([scale[k] * ((pixel - words[k]) ** 2).sum() for k in range(4)])
        wanted += (weight / weight.sum())[:, None] * (pixel - words)
    close(module.encode(x)[0], wanted)


@pytest.mark.parametrize("size", [(5, 7), (1, 3), (2, 2)])
def test_mirrored_borders(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    wanted = np.pad(x.numpy(), ((0, 0), (0, 0), (9, 9), (9, 9)), mode="reflect")
    assert np.array_equal(mirrored(x, 9).numpy(), wanted)


@torch.no_grad()
def test_upsampling_without_checkerboard() -> None:
    """Of a constant map, enlarging and convolving makes a constant map; a transposed convolution does not."""
    flat = torch.ones(1, 4, 8, 8)
    for how, kernel in (("resize", 3), ("transposed", 3), ("transposed", 2)):
        inside = upsampled(4, 3, kernel, how)(flat)
        assert inside.shape == (1, 3, 16, 16)
        spread = inside[..., 3:-3, 3:-3].flatten(2).std(2)
        assert bool((spread < 1e-6).all() if how == "resize" else (spread > 1e-3).all())


@torch.no_grad()
def test_transposed_convolution_starts_as_interpolation() -> None:
    x = torch.randn(1, 2, 4, 5)
    found = BilinearUp(2)(x)
    wanted = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1])
