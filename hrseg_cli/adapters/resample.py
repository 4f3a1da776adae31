"""A frozen click network between learned downsampling and upsampling: predictions at twice its resolution.

Ofitserov and Konushin 2024: a strided convolution before the network and a transposed one after it give a second,
larger prediction in addition to the network's own; optional are a skip connection, Sobel edges at the input and a
trained first layer. The larger designs follow HQ-SAM (Ke et al. 2023), Side-Tuning (Zhang et al. 2020) and
ControlNet's zero-initialised layers (Zhang et al. 2023).
Shapes: B batch, H and W the image, h = H / 2 and w = W / 2 the input of the network, c the width.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.adapters.controls import freeze
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.base import InteractiveModel

Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d)

WIDTHS = {"a": 0, "b_lite": 24, "b": 8, "c": 8}


class Resampled(InteractiveModel):
    """Down- and upsampling convolutions around the frozen model, for twice its resolution.

    forward(image, points) -> {"logits": the adapter's, "base": the base's, "aux": the base's, if it has them}
        image and points: inputs of the base, (B, 4, H, W) and (B, 2N, 3), any H and W; all outputs (B, 1, H, W).
        "base" and "aux" are enlarged by plain bilinear interpolation.
    Before training, "logits" equals "base": the logits of the base for the 2 x 2 means of the image, enlarged.

    design: ``a`` has only the two resampling convolutions. The others add a correction computed from the enlarged
        logits, the image and the clicks drawn at full size: ``b_lite`` at half the size; ``b`` with a small U-Net at
        full size; ``c`` with a decoder that also reads two feature maps of the base and adds features to its stem.
    sobel: add an edge channel to the image. skip: for design ``a`` only (the others have it): add a 3 x 3 convolution
        of the image, zero at first, to the logits.
    width: c of the correction, a multiple of 4; None: 24 for ``b_lite``, 8 for ``b`` and ``c``.
    first_layer: also train the base's first convolution of the image.
    Raises HrsegError for options that do not suit each other or the base, UnknownName for an unknown design.
    """

    name = "resample"
    enlarge = 2

    def __init__(
        self,
        base: InteractiveModel,
        *,
        design: Literal["a", "b_lite", "b", "c"] = "b_lite",
        sobel: bool = True,
        skip: bool = False,
        width: int | None = None,
        first_layer: bool = False,
    ) -> None:
        super().__init__()
        if design not in WIDTHS:
            raise UnknownName("design", design, WIDTHS)
        if skip and design != "a":
            raise HrsegError(f"skip: design {design} already sees the image; use skip with design a, or omit it")
        if width is not None and (design == "a" or width < 4 or width % 4):
            raise HrsegError(f"width {width}: must be a multiple of 4, and design a has no width; omit it")
        self.config = {"design": design, "sobel": sobel, "skip": skip, "width": width, "first_layer": first_layer}
        self.design, self.sobel = design, sobel
        self.base = base
        freeze(base)
        if first_layer:
            if not base.image_layer:
                raise HrsegError(
                    f"first_layer: '{base.name}' has no known first layer; set adapter.options.first_layer=false"
                )
            base.get_submodule(base.image_layer).requires_grad_(True)
        self.with_prev_mask, self.mirror, self.unused = base.with_prev_mask, base.mirror, base.unused
        self.single_precision = ("/(down|correct|inject)/", r"/levels\.", *base.single_precision)
        # Design c reads inner features of its base, after inputs have been converted to bf16.
        self.precisions = ("fp32",) if design == "c" else base.precisions

        channels = 4 if self.with_prev_mask else 3
        seen = channels + int(sobel)
        self.down, self.up = mean_down(seen, channels), bilinear_up()
        wide = width or WIDTHS[design]
        self.correct: Any = None
        if design == "a":
            self.correct = _zeroed(nn.Conv2d(seen, 1, 3, padding=1)) if skip else None
        if design == "b_lite":
            self.correct = correction_at_half(seen + 3, wide)
        elif design == "b":
            self.correct = UNet(seen + 3, wide)
        elif design == "c":
            if not {"stem", "fine"} <= base.taps.keys():
                raise HrsegError(f"design c needs inner features, which '{base.name}' does not provide; use design b")
            self.correct = Decoder(seen + 2, base.taps["stem"], base.taps["fine"], wide)

    def train(self, mode: bool = True) -> Resampled:
        super().train(mode)
        self.base.eval()  # no dropout: the function that is being adapted must not change
        return self

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[-2:]
        image = F.pad(image, (0, width % 2, 0, height % 2), mode="replicate")  # to an even size
        seen = torch.cat([image, edges(image[:, :3])], 1) if self.sobel else image
        small, near = self.down(seen), halved(points)
        if self.design == "c":
            stems = self.correct.stems(torch.cat([seen, self._clicks(image, points)], 1))
            outputs = self.base.tapped(small, near, self.correct.inject(stems[2]))
        else:
            outputs = self.base(small, near)
        logits = self.up(F.pad(outputs["logits"], (1, 1, 1, 1), mode="replicate"))
        if self.design == "c":
            logits = logits + self.correct(stems, outputs["stem"], outputs["fine"])
        elif self.design != "a":
            inputs = torch.cat([logits.sigmoid(), seen, self._clicks(image, points)], 1)
            logits = logits + self.correct(inputs)
        elif self.correct is not None:
            logits = logits + self.correct(seen)
        out = {"logits": logits, "base": doubled(outputs["logits"])}
        if "aux" in outputs:
            out["aux"] = doubled(outputs["aux"])
        return {name: value[..., :height, :width] for name, value in out.items()}

    def _for_inference(self, precision: str, keep_layers: bool) -> Resampled:
        around = copy.copy(self)
        around._modules = dict(self._modules)
        around.base = self.base.for_inference(precision, keep_layers=self.design == "c")
        return around

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Groups as in the base: "new" is untrained, "backbone" is pretrained or works at once (the resampling)."""
        new = list(self.correct.parameters()) if self.correct is not None else []
        old = [parameter for part in (self.down, self.up, self.base) for parameter in part.parameters()]
        return {"new": new, "heads": [], "backbone": old}

    def _clicks(self, image: Tensor, points: Tensor) -> Tensor:
        """(B, 2, H, W): clicks drawn at full size, in the same way as in the base."""
        return self.base.click_maps(points, *image.shape[-2:]).to(image.dtype)


def mean_down(inputs: int, outputs: int) -> nn.Conv2d:
    """(B, inputs, H, W) -> (B, outputs, H/2, W/2): initially the 2 x 2 mean of the first ``outputs`` channels."""
    conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
    channels = range(outputs)
    with torch.no_grad():
        _zeroed(conv).weight[channels, channels, 1:3, 1:3] = 0.25
    return conv


def bilinear_up() -> nn.ConvTranspose2d:
    """(B, 1, h + 2, w + 2), padded by replication -> (B, 1, 2h, 2w): initially bilinear, corners not aligned."""
    conv = nn.ConvTranspose2d(1, 1, 4, stride=2, padding=3)
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        _zeroed(conv).weight[0, 0] = torch.outer(taps, taps)
    return conv


def doubled(x: Tensor) -> Tensor:
    """Twice the size, bilinear, corners not aligned: the pixel grid of a 2 x 2 mean."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def halved(points: Tensor) -> Tensor:
    """Clicks in the coordinates of the image at half its size: (c + 0.5) / 2 - 0.5. Padding stays padding."""
    place = (points[..., :2] + 0.5) / 2 - 0.5
    # A click in the top left corner would get two negative coordinates, and be mistaken for padding.
    place = torch.where(place.amax(-1, keepdim=True) < 0, place.clamp(min=0), place)
    padding = points[..., :2].amax(-1, keepdim=True) < 0
    return torch.cat([torch.where(padding, points[..., :2], place), points[..., 2:]], -1)


def edges(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 1, H, W): Sobel gradient magnitude of the luminance, in [0.001, 0.708]."""
    red, green, blue = rgb[:, 0:1], rgb[:, 1:2], rgb[:, 2:3]
    grey = F.pad(0.299 * red + 0.587 * green + 0.114 * blue, (1, 1, 1, 1), mode="replicate")
    down = grey[..., :-2, :] + 2 * grey[..., 1:-1, :] + grey[..., 2:, :]
    across = grey[..., :-2] + 2 * grey[..., 1:-1] + grey[..., 2:]
    by_col, by_row = (down[..., 2:] - down[..., :-2]) / 8, (across[..., 2:, :] - across[..., :-2, :]) / 8
    return (by_col.square() + by_row.square() + 1e-6).sqrt()


# ---- corrections: the last layer of each is initialised with zeros ---------------------------------------------------


def correction_at_half(inputs: int, width: int) -> nn.Sequential:
    """(B, inputs, H, W) -> (B, 1, H, W), computed at half the size, on blocks of 2 x 2 pixels."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        _block(4 * inputs, width),
        _block(width, width),
        _block(width, width),
        _zeroed(nn.Conv2d(width, 4, 1)),
        nn.PixelShuffle(2),
    )


class UNet(nn.Module):
    """(B, inputs, H, W) -> (B, 1, H, W), with two coarser levels."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fine, self.middle = _block(inputs, width), _block(width, width, stride=2)
        self.coarse = nn.Sequential(_block(width, 2 * width, stride=2), _block(2 * width, 2 * width))
        self.to_middle, self.join_middle = _grow(2 * width, width), _block(2 * width, width)
        self.to_fine, self.join_fine = _grow(width, width), _block(2 * width, width)
        self.out = _zeroed(nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(fine)
        y = self.join_middle(_joined(self.to_middle(self.coarse(middle)), middle))
        correction: Tensor = self.out(self.join_fine(_joined(self.to_fine(y), fine)))
        return correction


class Decoder(nn.Module):
    """Features of image and clicks at three scales, partly fed into the base, joined with two of its feature maps.

    inputs: channels at full size. stem, context: channels of the base's features at h / 2 and h / 4.
    """

    def __init__(self, inputs: int, stem: int, context: int, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            [_block(inputs, width), _block(width, 2 * width, stride=2), _block(2 * width, 4 * width, stride=2)]
        )
        self.inject = _zeroed(nn.Conv2d(4 * width, stem, 1))
        self.from_context, self.from_stem = nn.Conv2d(context, 4 * width, 1), nn.Conv2d(stem, 4 * width, 1)
        self.grow = nn.ModuleList([_grow(4 * width, 4 * width), _grow(4 * width, 2 * width), _grow(2 * width, width)])
        self.join = nn.ModuleList(
            [_block(8 * width, 4 * width), _block(4 * width, 2 * width), _block(2 * width, width)]
        )
        self.out = _zeroed(nn.Conv2d(width, 1, 1))

    def stems(self, x: Tensor) -> list[Tensor]:
        """(B, inputs, H, W) -> features at H, H / 2 and H / 4, with c, 2c and 4c channels."""
        found = []
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found

    def forward(self, stems: list[Tensor], stem: Tensor, context: Tensor) -> Tensor:
        """(B, 1, H, W) from :meth:`stems`, stem (B, 64, h/2, w/2) and context (B, C, h/4, w/4), the taps."""
        y = self.from_context(context)
        sides = [self.from_stem(stem) + stems[2], stems[1], stems[0]]
        for grow, join, side in zip(self.grow, self.join, sides, strict=True):
            y = join(_joined(grow(y), side))
        correction: Tensor = self.out(y)
        return correction


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.GroupNorm(4, outputs), nn.LeakyReLU(0.2)
    )


def _grow(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)


def _joined(coarse: Tensor, fine: Tensor) -> Tensor:
    """Concatenated along channels. Doubling a rounded-up odd size gives one row or column too many; it is cropped."""
    return torch.cat([coarse[..., : fine.shape[-2], : fine.shape[-1]], fine], 1)


def _zeroed(layer: Layer) -> Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
