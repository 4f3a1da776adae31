"""The sliding window: a small network classifies each pixel from the window around it, and sees nothing else.

Ciresan et al., "Deep Neural Networks Segment Neuronal Membranes in Electron Microscopy Images" (NIPS 2012). Windows of
neighbouring pixels overlap, so all are computed at once, as in Giusti et al. (ICIP 2013): strides in the window become
dilations in the image.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.zoo.network import Outputs, Whole, click_model
from hrseg_cli.models.zoo.unet import cropped

RATES = (2, 4, 8)  # dilations after the first convolution: each pooling halves the window
WINDOW = 93  # pixels


class PixelClassifier(Whole):
    """3x3 convolutions, each followed by a 3x3 max-pooling, then two layers that are fully connected within a window.

    Nothing is padded except the first convolution, whose border is cropped from the logits; the image is mirrored
    instead. width: channels. hidden: of the first fully connected layer.
    """

    stem_stride = 1
    image_layer = "first"
    margin = WINDOW // 2

    def __init__(self, classes: int, width: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.stem_channels = width
        self.enter = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.units = nn.ModuleList(dilated_unit(width, width, rate) for rate in RATES)
        self.full = nn.Sequential(dilated_unit(width, hidden, 2 * RATES[-1]), nn.Dropout2d(0.5))
        self.classify = nn.Conv2d(hidden, classes, 1)
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)  # last: clicks come before its normalisation

    def stem_features(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x)
        return first

    def outputs(self, x: Tensor) -> Outputs:
        x = self.enter(x)
        for rate, unit in zip(RATES, self.units, strict=True):
            x = unit(F.max_pool2d(x, 3, 1, dilation=rate // 2))
        x = F.max_pool2d(x, 3, 1, dilation=RATES[-1])
        return {"logits": cropped(self.classify(self.full(x)), 1)}


def dilated_unit(inputs: int, outputs: int, rate: int) -> nn.Sequential:
    """3x3 convolution without padding, batch normalisation, ReLU; ``rate`` rows and columns are lost at each side."""
    conv = nn.Conv2d(inputs, outputs, 3, dilation=rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


@click_model
def pixel_classifier(width: int = 16, hidden: int = 64) -> Whole:
    """A sliding window: each pixel is classified from the 93x93 pixels around it (Ciresan et al. 2012)."""
    return PixelClassifier(1, width, hidden)
