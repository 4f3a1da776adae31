"""What decoders and click models know of a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
ADDED = ("num_batches_tracked", "smoother")  # ends of names that public files may lack


class Backbone(nn.Module):
    """Features of an image at strides 2, 4, 8, 16 and 32: five maps. Height and width are multiples of 32.

    ``pyramid(stem_features(normalised(image)))``; clicks are added to the features of the stem.

    channels: of the five maps. stem_channels, stem_stride: of the stem's features.
    image_layer: name of the convolution that reads the image.
    classifier: beginnings of names in public files that belong to no feature.
    can_dilate: whether :meth:`strided` layers can trade their stride for dilation.
    margin: rows and columns that the network loses at each side, and the image is mirrored by.
    """

    channels: Sequence[int]
    stem_channels: int
    stem_stride: int = 2
    image_layer: str
    classifier: tuple[str, ...] = ()
    can_dilate: bool = True
    margin: int = 0

    def normalised(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> as the ImageNet weights expect it."""
        mean, std = (torch.tensor(one, device=image.device)[:, None, None] for one in (MEAN, STD))
        return (image - mean) / std

    def stem_features(self, x: Tensor) -> Tensor:
        """The first features of a normalised image."""
        raise NotImplementedError

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The five maps, finest first, from the features of the stem."""
        raise NotImplementedError

    def strided(self) -> list[list[nn.Module]]:
        """The layers that take the features to stride 16, and to stride 32."""
        raise NotImplementedError

    def load_imagenet(self, state: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights from a public state dict. All of them must fit.

        Raises HrsegError for missing, unexpected or misshapen tensors.
        """
        given = {name: value for name, value in state.items() if not name.startswith(self.classifier or "-")}
        own = self.state_dict()
        for name in [*own, *given]:
            if name.endswith(ADDED) and name not in given:
                continue
            shapes = [tuple(part[name].shape) if name in part else "absent" for part in (given, own)]
            if shapes[0] != shapes[1]:
                raise HrsegError(
                    f"{name} is {shapes[0]} in the file and {shapes[1]} in the network; give the public ImageNet "
                    "weights of this backbone"
                )
        self.load_state_dict(given, strict=False)
