"""SimpleClick: a plain Vision Transformer; clicks and previous mask are embedded as patches and added to the image's.

Liu et al. 2023, "SimpleClick: Interactive Image Segmentation with Simple Vision Transformers" (ICCV 2023). Module names
follow the public checkpoints, so that their state dicts load unchanged.
Shapes: B batch, H and W input size, h and w rows and columns of patches, C channels of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import Features, ViTModel
from hrseg_cli.models.parts.click_maps import disk_maps, no_clicks
from hrseg_cli.models.parts.vit import (
    EPS,
    Block,
    PatchEmbedding,
    pad_to_patches,
    positions,
    whole_grid,
    windows_of,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
WINDOW = 14  # tokens a side
SAM_PARTS = ("image_encoder.", "vision_encoder.")  # in its authors' format, and in that of transformers
CLASSES = 1000  # of the unused classifier in public checkpoints
MOST_BLOCKS, MOST_CHANNELS, MOST_PIXELS = 64, 8192, 4096


class SimpleClick(ViTModel):
    """SimpleClick (Liu et al. 2023), a Vision Transformer of any size (simpleclick_b is one of them).

    patch: side of a patch in pixels. width, depth, heads: channels of a token, number of blocks, attention heads.
    size: (height, width) of the images whose positions are learned; they are resized for others.
    levels: channels of the feature maps at strides 4, 8, 16 and 32. channels: of the head. radius: of a click's disk.
    drop_path: probability, in training, of leaving out the last block for a sample; earlier blocks have less.
    """

    name = "simpleclick"
    precisions = ("fp32", "bf16")
    image_layer = "backbone.patch_embed.proj"
    single_precision = ("/patch_embed/", "/patch_embed_coords/", "/conv_seg/")
    unused = ("backbone.cls_token", "backbone.fc_norm.", "backbone.head.", "head.up_conv")
    layer_groups: Mapping[str, tuple[str, ...]] = {
        "patches": (r"^(patch_embed_coords|backbone\.patch_embed)\.",),
        "q": (r"\.qkv\.q$",),
        "k": (r"\.qkv\.k$",),
        "v": (r"\.qkv\.v$",),
        "projection": (r"\.attn\.proj\b",),
        "mlp": (r"\.mlp\.",),
        "pyramid": (r"^neck\.",),
        "decoder": (r"^head\.(convs|fusion_conv)\.",),
        "heads": (r"^head\.conv_seg\b",),
    }

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        size: Sequence[int] = (448, 448),
        levels: Sequence[int] = (128, 256, 512, 1024),
        channels: int = 256,
        radius: float = 5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        # A file may contain any numbers. The model is built before its weights are compared, so it must stay small.
        if not all(0 < number <= MOST_CHANNELS for number in (width, *levels, channels)):
            raise ValueError(f"width, levels and channels take 1 to {MOST_CHANNELS}")
        if len(levels) != 4 or len(size) != 2:
            raise ValueError("levels takes 4 numbers, size 2")
        if not (0 < patch <= min(size) and max(size) <= MOST_PIXELS):
            raise ValueError(f"size takes sides from one patch to {MOST_PIXELS} pixels")
        if depth not in range(4, MOST_BLOCKS + 1, 4):
            raise ValueError(f"depth takes a multiple of 4, up to {MOST_BLOCKS}")
        if heads < 1 or width % heads or not 0 < radius <= MOST_CHANNELS or not 0 <= drop_path < 1:
            raise ValueError("heads must divide width, radius be above 0, and drop_path be in [0, 1)")
        self.config: dict[str, Any] = {
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "size": list(size),
            "levels": list(levels),
            "channels": channels,
            "radius": radius,
            "drop_path": drop_path,
        }
        self.patch, self.width, self.depth, self.radius = patch, width, depth, radius
        self.image_channels = width if patch == 16 else 0
        self.register_buffer("_mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.patch_embed_coords = PatchEmbedding(3, width, patch)
        self.backbone = Backbone(patch, width, depth, heads, (size[0] // patch, size[1] // patch), drop_path)
        self.neck = Pyramid(width, levels)
        self.head = Head(levels, channels)

    def encode(self, image: Tensor) -> Features:
        """image: (B, 3, H, W), RGB in [0, 1] -> its tokens with their positions, (B, h, w, C). The blocks see the
        clicks, so nothing after this is independent of them."""
        return (self.backbone.embedded(pad_to_patches((image - self._mean) / self._std, self.patch)),)

    def embed(self, features: Features, previous: Tensor, points: Tensor) -> Tensor:
        (tokens,) = features
        previous = pad_to_patches(previous, self.patch)
        maps = disk_maps(points, previous.shape[-2], previous.shape[-1], self.radius).to(previous.dtype)
        prompt: Tensor = self.patch_embed_coords(torch.cat([previous, maps], 1))
        return tokens + prompt

    def image_features(self, image: Tensor) -> Tensor:
        """See :meth:`InteractiveModel.image_features`: the tokens after the last block."""
        rows, cols = (-(-side // self.patch) for side in image.shape[-2:])
        tokens = self.embed(self.encode(image), torch.zeros_like(image[:, :1]), no_clicks(image))
        return self.attend(tokens).permute(0, 3, 1, 2)[..., :rows, :cols]

    def attend(self, tokens: Tensor, feedback: Sequence[Tensor] | None = None) -> Tensor:
        return self.backbone.attended(tokens, feedback)

    def answer(self, tokens: Tensor, height: int, width: int) -> dict[str, Tensor]:
        logits = self.head(self.neck(tokens.permute(0, 3, 1, 2)))
        padded = tokens.shape[1] * self.patch, tokens.shape[2] * self.patch
        logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=True)
        return {"logits": logits[..., :height, :width]}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {"new": [], "heads": [], "backbone": [], "fixed": []}
        for name, parameter in self.named_parameters():
            if any(part in name for part in self.unused):
                groups["fixed"].append(parameter)
            elif name.startswith("head.conv_seg."):
                groups["heads"].append(parameter)
            else:
                groups["backbone" if name.startswith("backbone.") else "new"].append(parameter)
        return groups

    def distances(self) -> dict[nn.Parameter, int]:
        found = dict.fromkeys((self.backbone.pos_embed, *self.backbone.patch_embed.parameters()), self.depth + 1)
        for number, block in enumerate(self.backbone.blocks):
            found |= dict.fromkeys(block.parameters(), self.depth - number)
        return found

    def initialise(self, backbone: Mapping[str, Tensor] | None, coverage: float) -> float:
        return 0.0 if backbone is None else self.backbone.load_pretrained(backbone, coverage)

    def click_maps(self, points: Tensor, height: int, width: int) -> Tensor:
        return disk_maps(points, height, width, self.radius)


class Backbone(nn.Module):
    """A Vision Transformer whose last block in each group attends to the whole grid, and the others to windows."""

    def __init__(self, patch: int, width: int, depth: int, heads: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__()
        self.grid = grid
        self.group = 6 if depth == 12 else depth // 4
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, width))
        self.patch_embed = PatchEmbedding(3, width, patch)
        self.blocks = nn.Sequential(*(Block(width, heads, drop_path * number / (depth - 1)) for number in range(depth)))
        self.fc_norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, CLASSES)
        nn.init.normal_(self.pos_embed, std=0.02)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def embedded(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), normalised -> (B, h, w, C)."""
        tokens: Tensor = self.patch_embed(image)
        return tokens + positions(self.pos_embed[:, 1:], self.grid, tokens.shape[1], tokens.shape[2])

    def attended(self, x: Tensor, feedback: Sequence[Tensor] | None) -> Tensor:
        height, width = x.shape[1:3]
        whole, windows = whole_grid(height, width), windows_of(height, width, WINDOW)
        for number, block in enumerate(self.blocks):
            back = None if feedback is None else feedback[number]
            x = block(x, windows if (number + 1) % self.group else whole, back)
        return x

    def load_pretrained(self, state: Mapping[str, Tensor], coverage: float) -> float:
        """Load the weights of a ViT in timm's layout, as MAE publishes them, where names and shapes match. Positions
        are resized. Returns the fraction of the used parameters covered; raises HrsegError if it is too small."""
        wanted = {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith(("cls_token", "fc_norm.", "head."))
        }
        found = dict(state)
        table = found.get("pos_embed")
        if table is not None and table.ndim == 3 and table.shape[-1] == self.pos_embed.shape[-1]:
            side = int((table.shape[1] - 1) ** 0.5)
            if side * side + 1 == table.shape[1]:
                resized = positions(table[:, 1:].float(), (side, side), *self.grid).flatten(1, 2)
                found["pos_embed"] = torch.cat([table[:, :1].float(), resized], 1)
        fitting = {
            name: found[name] for name, value in wanted.items() if name in found and found[name].shape == value.shape
        }
        share = sum(map(Tensor.numel, fitting.values())) / sum(map(Tensor.numel, wanted.values()))
        if share < coverage:
            lost = next(name for name in wanted if name not in fitting)
            have = tuple(found[lost].shape) if lost in found else "nothing"
            sam = any(part in name for name in state for part in SAM_PARTS)
            what = "a Segment Anything model, which " if sam else ""
            raise HrsegError(
                f"{what}covers {share:.0%} of the network's backbone, less than model.coverage={coverage:.0%} "
                f"({lost} is {tuple(wanted[lost].shape)} in the network, {have} in the file); "
                "give weights of a ViT of this size, such as MAE's, or lower model.coverage"
            )
        self.load_state_dict(fitting, strict=False)
        return share


class Pyramid(nn.Module):
    """Feature maps at strides 4, 8, 16 and 32 from the tokens alone: (B, C, h, w) -> (B, levels[i], ...)."""

    def __init__(self, width: int, levels: Sequence[int]) -> None:
        super().__init__()
        four, eight, last = max(2 * levels[0], width // 2), max(levels[1], width // 2), max(levels[3], 2 * width)
        self.down_4 = nn.Sequential(
            nn.ConvTranspose2d(width, four, 2, stride=2),
            nn.GroupNorm(1, four),
            nn.GELU(),
            nn.ConvTranspose2d(four, four // 2, 2, stride=2),
            nn.GroupNorm(1, four // 2),
            *_projection(four // 2, levels[0]),
        )
        self.down_8 = nn.Sequential(
            nn.ConvTranspose2d(width, eight, 2, stride=2), nn.GroupNorm(1, eight), *_projection(eight, levels[1])
        )
        self.down_16 = nn.Sequential(*_projection(width, levels[2]))
        self.down_32 = nn.Sequential(
            nn.Conv2d(width, last, 2, stride=2), nn.GroupNorm(1, last), *_projection(last, levels[3])
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.down_4(x), self.down_8(x), self.down_16(x), self.down_32(x)]


class Head(nn.Module):
    """Logits (B, 1, h, w) at the finest of four feature maps, from all of them.

    ``up_conv1`` and ``up_conv2`` are in the public checkpoints, but only variants with finer logits use them.
    """

    def __init__(self, levels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.ModuleDict({"conv": nn.Conv2d(level, channels, 1)}) for level in levels)
        self.fusion_conv = nn.ModuleDict({"conv": nn.Conv2d(len(levels) * channels, channels, 1)})
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, 1, 1)
        self.up_conv1 = _finer(channels)
        self.up_conv2 = _finer(max(1, channels // 2))
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[-2:]
        alike = [
            F.interpolate(F.relu(conv["conv"](one)), size=size, mode="bilinear", align_corners=False)  # type: ignore[index]
            for conv, one in zip(self.convs, maps, strict=True)
        ]
        logits: Tensor = self.conv_seg(self.dropout(F.relu(self.fusion_conv["conv"](torch.cat(alike, 1)))))
        return logits


def _projection(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 1), nn.GroupNorm(1, outputs), nn.GELU()


def _finer(channels: int) -> nn.Sequential:
    half = max(1, channels // 2)
    return nn.Sequential(
        nn.ConvTranspose2d(channels, half, 2, stride=2), nn.GroupNorm(1, half), *_projection(half, half)
    )
