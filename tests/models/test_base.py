"""What a model has from the contract alone, without a word of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hrseg_cli.models.base import Features, InteractiveModel


class Encoding(InteractiveModel):
    name = "encoding"
    config: dict[str, Any] = {}  # noqa: RUF012
    has_encoder = True
    precisions = ("fp32", "bf16")

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mix, self.decoder = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Conv2d(9, 1, 1)

    def encode(self, image: Tensor) -> Features:
        return (self.encoder(image).relu(),)

    def decode(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        mixed = self.mix(features[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return {"logits": self.decoder(torch.cat([mixed, previous], 1))}


def test_half_precision_of_both_parts() -> None:
    """A session asks the parts, not the whole; the model that was lowered stays as it was."""
    torch.manual_seed(0)
    model = Encoding().eval()
    lowered = model.for_inference("bf16")
    image, points = torch.rand(1, 4, 12, 9), torch.full((1, 2, 3), -1.0)
    with torch.inference_mode():
        plain, whole = (one(image, points)["logits"] for one in (model, lowered))
        parts = lowered.decode(lowered.encode(image[:, :3]), image[:, 3:], points)["logits"]
    assert torch.equal(whole, parts)
    assert whole.dtype == torch.float32
    assert not torch.equal(whole, plain)
    torch.testing.assert_close(whole, plain, atol=0.05, rtol=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.for_inference() is model
