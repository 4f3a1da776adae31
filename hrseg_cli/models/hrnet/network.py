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
from hrseg_cli.models.parts.backbones.hrnet import HRNet, joined, resize
from hrseg_cli.models.parts.click_maps import disk_maps, distance_maps
from hrseg_cli.models.parts.ocr import ObjectContext
from hrseg_cli.models.parts.stem import Scale, click_stem

IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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
            self.maps_transform = click_stem(maps, 64, 2, activation)
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


class HRNetOCR(HRNet):
    """Image (B, 3, H, W) and extra stem features (B, 64, H/2, W/2) -> main and auxiliary logits (B, 1, H/4, W/4)."""

    def __init__(self, width: int, ocr_width: int, small: bool) -> None:
        super().__init__(width, small)
        channels = 15 * width
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
        x = self.stem_features(x)
        return joined(self.branches(x if extra is None else x + extra))
