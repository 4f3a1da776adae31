"""RITM's click network: HRNetV2 with an object-contextual (OCR) head; clicks and previous mask are fused in the stem.

Sofiiuk et al. 2021, "Reviving Iterative Training with Mask Guidance for Interactive Segmentation" (fusion: 3.1);
Wang et al. 2019, "Deep High-Resolution Representation Learning"; Yuan et al. 2020, "Object-Contextual
Representations".
Module names follow the public checkpoints, so that their state dicts load unchanged.
Shapes: B batch, H and W input size, w width of the finest branch, C = 15 w channels of the four branches together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.parts.click_maps import disk_maps, distance_maps

IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def resize(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear resampling with aligned corners, used throughout the network."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class ClickHRNet(InteractiveModel):
    """RITM's click network, an HRNet with an OCR head, of any size (h18s, h18 and h32 are sizes of it).

    width, ocr_width, small: size of HRNet and of its head (ocr_width 0: a plain head without OCR).
    with_aux_output: also return the auxiliary logits. use_leaky_relu: in the fusion layers only.
    use_disks: draw clicks as disks of ``norm_radius`` pixels; otherwise as distance maps, tanh(2 d / norm_radius).
    use_rgb_conv: fuse click maps into the image by 1x1 convolutions instead of into the stem's features.
    conv_extend: a single strided convolution for the click maps. binary_prev_mask: threshold the previous mask at 0.5.
    """

    name = "hrnet_ocr"
    precisions = ("fp32", "bf16")
    unused = ("f_pixel", "f_object")
    image_layer = "feature_extractor.conv1"
    pooled_norms = ("object_context_block",)
    # About 5 % of the computation in h18s. The scope before conv1 depends on the exported module.
    single_precision = (
        *("maps_transform", "rgb_conv", "/(model|base|feature_extractor)/conv1/"),
        *("cls_head", r"aux_head\.3"),
    )
    layer_groups: Mapping[str, tuple[str, ...]] = {
        "stem": ("feature_extractor.conv1", "feature_extractor.conv2", "maps_transform", "rgb_conv"),
        "layer1": ("layer1",),
        "stages": ("transition", "stage"),
        "ocr": ("ocr",),
        "heads": ("cls_head", "aux_head"),
    }

    def __init__(
        self,
        *,
        width: int,
        ocr_width: int,
        small: bool = False,
        with_aux_output: bool = True,
        use_leaky_relu: bool = True,
        use_rgb_conv: bool = False,
        use_disks: bool = True,
        norm_radius: float = 5,
        with_prev_mask: bool = True,
        binary_prev_mask: bool = False,
        conv_extend: bool = False,
        norm_mean_std: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET_MEAN_STD,
    ) -> None:
        self.config = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        if with_aux_output and ocr_width == 0:
            raise ValueError("with_aux_output needs the OCR head; set ocr_width above 0")
        if not 0 < norm_radius <= (largest := 100 if use_disks else 10_000):  # a disk's memory grows with its square
            raise ValueError(f"norm_radius must be above 0 and at most {largest}")
        self.with_prev_mask = with_prev_mask
        self.with_aux_output = with_aux_output
        self.binary_prev_mask = binary_prev_mask
        self.use_disks = use_disks
        self.norm_radius = norm_radius
        # Not persistent: the public checkpoints do not contain these two buffers.
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", torch.tensor(norm_mean_std[0]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(norm_mean_std[1]).view(1, 3, 1, 1), persistent=False)

        maps = 3 if with_prev_mask else 2
        activation = nn.LeakyReLU(0.2, inplace=True) if use_leaky_relu else nn.ReLU(inplace=True)
        if use_rgb_conv:
            self.rgb_conv = nn.Sequential(
                nn.Conv2d(3 + maps, 6 + maps, 1), nn.BatchNorm2d(6 + maps), activation, nn.Conv2d(6 + maps, 3, 1)
            )
        elif conv_extend:
            self.maps_transform: nn.Module = nn.Conv2d(maps, 64, 3, stride=2, padding=1)
        else:
            self.maps_transform = nn.Sequential(
                nn.Conv2d(maps, 16, 1), activation, nn.Conv2d(16, 64, 3, stride=2, padding=1), Scale(0.05)
            )
        self.use_rgb_conv = use_rgb_conv
        self.feature_extractor = HRNetOCR(width, ocr_width, small)
        if ocr_width and not use_rgb_conv:
            self.taps = {"stem": 64, "fine": 2 * ocr_width}

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        size = image.shape[-2:]
        rgb = (image[:, :3] - self._mean) / self._std
        maps = self.click_features(image, points)
        if self.use_rgb_conv:
            main, aux = self.feature_extractor(self.rgb_conv(torch.cat([rgb, maps], 1)), None)
        else:
            main, aux = self.feature_extractor(rgb, self.maps_transform(maps))
        out = {"logits": resize(main, size)}
        if self.with_aux_output:
            out["aux"] = resize(aux, size)
        return out

    def tapped(self, image: Tensor, points: Tensor, inject: Tensor | None = None) -> dict[str, Tensor]:
        """See :meth:`InteractiveModel.tapped`. "stem": the first convolution's image features, at half resolution.
        "fine": the classifier's input, at quarter resolution."""
        size, net = image.shape[-2:], self.feature_extractor
        rgb = (image[:, :3] - self._mean) / self._std
        maps = self.maps_transform(self.click_features(image, points))
        features = net.backbone(rgb, maps if inject is None else maps + inject)
        aux = net.aux_head(features)
        fine = net.ocr_distri_head(net.conv3x3_ocr(features), aux)
        out = {"logits": resize(net.cls_head(fine), size), "fine": fine}
        # Computed a second time; costs half a percent of a forward pass.
        out["stem"] = F.relu(net.bn1(net.conv1(rgb)))
        if self.with_aux_output:
            out["aux"] = resize(aux, size)
        return out

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {"new": [], "heads": [], "backbone": []}
        for name, parameter in self.named_parameters():
            new = "maps_transform" in name or "rgb_conv" in name or "conv3x3_ocr" in name or "ocr_distri_head" in name
            head = "cls_head" in name or "aux_head" in name
            groups["new" if new else "heads" if head else "backbone"].append(parameter)
        return groups

    def _for_inference(self, precision: str, keep_layers: bool) -> InteractiveModel:
        from hrseg_cli.models.hrnet import inference  # not at the top: it imports this module

        return inference.for_inference(self, precision, keep_layers)

    def initialise(self, backbone: Mapping[str, Tensor] | None, coverage: float) -> float:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, gain=math.sqrt(2))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if backbone is None:
            for module in self.modules():
                if isinstance(module, Scale):  # a small scale protects pretrained features, and there are none
                    nn.init.ones_(module.scale)
            return 0.0
        return self._load_backbone(backbone, coverage)

    def _load_backbone(self, backbone: Mapping[str, Tensor], coverage: float) -> float:
        """Load an HRNet's weights where names and shapes match. Returns the share of parameters covered, not counting
        heads and click maps."""
        found = {key.replace("model.", ""): value for key, value in backbone.items()}
        heads = ("conv3x3_ocr", "ocr_distri_head", "cls_head", "aux_head")
        wanted = {
            key: value
            for key, value in self.feature_extractor.state_dict().items()
            if value.ndim and not any(head in key for head in heads)
        }
        fitting = {
            key: found[key]
            for key, value in wanted.items()
            if isinstance(found.get(key), Tensor) and found[key].shape == value.shape
        }
        share: float = sum(map(Tensor.numel, fitting.values())) / max(1, sum(map(Tensor.numel, wanted.values())))
        if share < coverage:
            lost = next(key for key in wanted if key not in fitting)
            have = tuple(found[lost].shape) if isinstance(found.get(lost), Tensor) else "nothing"
            raise HrsegError(
                f"covers {share:.0%} of the network's backbone, less than model.coverage={coverage:.0%} "
                f"({lost} is {tuple(wanted[lost].shape)} in the network, {have} in the file); "
                "give weights of this width, or lower model.coverage"
            )
        self.feature_extractor.load_state_dict(fitting, strict=False)
        return share

    def click_maps(self, points: Tensor, height: int, width: int) -> Tensor:
        draw = disk_maps if self.use_disks else distance_maps
        return draw(points, height, width, self.norm_radius)

    def click_features(self, image: Tensor, points: Tensor) -> Tensor:
        """(B, 3, H, W): previous mask, positive clicks, negative clicks. Without previous mask, the last two."""
        maps = self.click_maps(points, *image.shape[-2:]).to(image.dtype)
        if not self.with_prev_mask:
            return maps
        previous = image[:, 3:4]
        if self.binary_prev_mask:
            previous = (previous > 0.5).to(image.dtype)
        return torch.cat([previous, maps], 1)


class Scale(nn.Module):
    """Multiplies by the absolute value of a learned scalar."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.abs()


class HRNetOCR(nn.Module):
    """Image (B, 3, H, W) and extra stem features (B, 64, H/2, W/2) -> main and auxiliary logits (B, 1, H/4, W/4)."""

    def __init__(self, width: int, ocr_width: int, small: bool) -> None:
        super().__init__()
        blocks = 2 if small else 4
        widths = [width * 2**branch for branch in range(4)]
        self.conv1, self.bn1 = conv3x3(3, 64, 2), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = conv3x3(64, 64, 2), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Bottleneck(64, 64), *(Bottleneck(256, 64) for _ in range(blocks - 1)))
        self.transition1 = nn.ModuleList(
            [conv_bn_relu(256, widths[0]), nn.Sequential(conv_bn_relu(256, widths[1], stride=2))]
        )
        self.stage2 = stage(1, widths[:2], blocks)
        self.transition2 = new_branch(widths[:3])
        self.stage3 = stage(3 if small else 4, widths[:3], blocks)
        self.transition3 = new_branch(widths)
        self.stage4 = stage(2 if small else 3, widths, blocks)

        channels = sum(widths)
        self.has_ocr = ocr_width > 0
        if self.has_ocr:
            middle = 2 * ocr_width
            self.conv3x3_ocr = nn.Sequential(
                nn.Conv2d(channels, middle, 3, padding=1), nn.BatchNorm2d(middle), nn.ReLU(inplace=True)
            )
            self.ocr_distri_head = ObjectContext(middle, ocr_width)
            self.cls_head: nn.Module = nn.Conv2d(middle, 1, 1)
            self.aux_head = nn.Sequential(
                nn.Conv2d(channels, channels, 1),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, 1, 1),
            )
        else:
            self.cls_head = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, 1, 1),
            )

    def forward(self, x: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Main and auxiliary logits; the latter are None without OCR."""
        features = self.backbone(x, extra)
        if not self.has_ocr:
            return self.cls_head(features), None
        aux = self.aux_head(features)  # needed at inference too: it weights the pixels of the object context
        return self.cls_head(self.ocr_distri_head(self.conv3x3_ocr(features), aux)), aux

    def backbone(self, x: Tensor, extra: Tensor | None) -> Tensor:
        """(B, C, H/4, W/4): all four branches at the resolution of the finest."""
        x = F.relu_(self.bn1(self.conv1(x)))
        if extra is not None:
            x = x + extra
        x = F.relu_(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        branches = [transition(x) for transition in self.transition1]
        branches = self.stage2(branches)
        branches = self.stage3([*branches, self.transition2[-1](branches[-1])])
        branches = self.stage4([*branches, self.transition3[-1](branches[-1])])
        size = branches[0].shape[-2:]
        return torch.cat([branches[0], *(resize(branch, size) for branch in branches[1:])], 1)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def new_branch(widths: list[int]) -> nn.ModuleList:
    """The coarser branch that a stage adds. Empty entries keep the numbering of the public checkpoints."""
    added = nn.Sequential(conv_bn_relu(widths[-2], widths[-1], stride=2))
    gaps: list[nn.Module] = [None] * (len(widths) - 1)  # type: ignore[list-item]  # torch allows None
    return nn.ModuleList([*gaps, added])


def stage(modules: int, widths: list[int], blocks: int) -> nn.Sequential:
    return nn.Sequential(*(Exchange(widths, blocks) for _ in range(modules)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a residual; the output has four times the inner channels."""

    def __init__(self, inputs: int, inside: int) -> None:
        super().__init__()
        outputs = 4 * inside
        self.conv1, self.bn1 = nn.Conv2d(inputs, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv2, self.bn2 = conv3x3(inside, inside), nn.BatchNorm2d(inside)
        self.conv3, self.bn3 = nn.Conv2d(inside, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
            if inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return F.relu_(self.bn3(self.conv3(x)) + residual)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(y)) + x)


class Exchange(nn.Module):
    """One HRNet module: blocks on each branch, then each branch adds all others, resampled to its resolution."""

    def __init__(self, widths: list[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in widths)
        count = range(len(widths))
        bridges = [[bridge(widths, j, i) for j in count] for i in count]
        self.fuse_layers = nn.ModuleList(nn.ModuleList(row) for row in bridges)  # type: ignore[arg-type]  # with gaps

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        xs = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        outputs = []
        for i, bridges in enumerate(self.fuse_layers):
            assert isinstance(bridges, nn.ModuleList)
            total: Tensor | None = None
            for j, x in enumerate(xs):
                if j != i:
                    x = bridges[j](x)
                if j > i:
                    x = resize(x, xs[i].shape[-2:])
                total = x if total is None else total + x
            assert total is not None
            outputs.append(F.relu(total))
        return outputs


def bridge(widths: list[int], source: int, target: int) -> nn.Module | None:
    """From one branch to another: a 1x1 convolution to a finer one (upsampled later), strided 3x3 ones to a coarser."""
    if source == target:
        return None
    if source > target:
        return nn.Sequential(nn.Conv2d(widths[source], widths[target], 1, bias=False), nn.BatchNorm2d(widths[target]))
    steps = [conv_bn_relu(widths[source], widths[source], stride=2) for _ in range(target - source - 1)]
    last = nn.Sequential(conv3x3(widths[source], widths[target], 2), nn.BatchNorm2d(widths[target]))
    return nn.Sequential(*steps, last)


class ObjectContext(nn.Module):
    """OCR with a single object class: concatenates the mean object feature, weighted by the auxiliary map, to each
    pixel.

    With one class the attention over classes is 1 everywhere, so its queries and keys (``f_pixel``, ``f_object``) do
    not affect the output. Their weights exist for compatibility with checkpoints. In training only ``f_object``, the
    cheaper one, runs, to update its BatchNorm statistics as in the reference.
    """

    def __init__(self, channels: int, key: int) -> None:
        super().__init__()
        self.object_context_block = nn.ModuleDict(
            {
                "f_pixel": _projections(channels, key, 2),
                "f_object": _projections(channels, key, 2),
                "f_down": _projections(channels, key, 1),
                "f_up": _projections(key, channels, 1),
            }
        )
        self.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1, bias=False), _bn_relu(channels), nn.Dropout2d(0.05)
        )

    def forward(self, features: Tensor, aux: Tensor) -> Tensor:
        weights = aux.flatten(2).softmax(dim=2)  # (B, 1, HW)
        gathered = (weights @ features.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)  # (B, C, 1, 1)
        context = self.object_context_block["f_down"](gathered)
        if self.training:
            with torch.no_grad():
                self.object_context_block["f_object"](gathered)
            # Expanded so that batch statistics count every pixel, as in the reference.
            context = context.expand(-1, -1, *features.shape[-2:])
        context = self.object_context_block["f_up"](context).expand_as(features)
        out: Tensor = self.conv_bn_dropout(torch.cat([context, features], 1))
        return out


def _projections(inputs: int, outputs: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [nn.Conv2d(outputs if index else inputs, outputs, 1, bias=False), _bn_relu(outputs)]
    return nn.Sequential(*layers)


def _bn_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
