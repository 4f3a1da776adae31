"""Freezing, the plain controls, and keeping what an adapter changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from reference import FakeNetwork
from torch import Tensor, nn

from hrseg_cli.adapters import adapter_state, load_adapter_state
from hrseg_cli.adapters.controls import PARTS, StillBatchNorm, freeze_for, hold
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.hrnet.network import ClickHRNet


@pytest.mark.parametrize("part", PARTS)
def test_a_control_changes_its_part_and_nothing_else(base: ClickHRNet, two_steps: Any, part: str) -> None:
    norms = tuple(f"{name}." for name, module in base.named_modules() if isinstance(module, nn.BatchNorm2d))
    before, after = two_steps(freeze_for(base, part))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    alive = {name for name in before if "f_pixel" not in name and "f_object" not in name}
    wanted = {
        "full": alive,
        "head": {name for name in alive if "cls_head" in name or "aux_head" in name},
        "bn": {name for name in alive if name.startswith(norms)},
        "bitfit": {name for name in alive if name.endswith("bias")},
    }
    assert changed == wanted[part] == set(adapter_state(base))


def test_a_control_can_follow_another(base: ClickHRNet, two_steps: Any) -> None:
    """Statistics held still by one choice move again under the next."""
    freeze_for(base, "bitfit")
    before, after = two_steps(freeze_for(base, "bn"))
    assert not torch.equal(before["feature_extractor.bn1.running_mean"], after["feature_extractor.bn1.running_mean"])


def test_a_part_that_is_not_there_is_refused(base: ClickHRNet) -> None:
    with pytest.raises(UnknownName, match=r"'heads'.*'head'"):
        freeze_for(base, "heads")
    with pytest.raises(HrsegError, match="has nothing to train"):
        freeze_for(FakeNetwork(), "full")


def test_what_was_kept_makes_the_same_model_of_the_base(base: ClickHRNet, two_steps: Any) -> None:
    other = freeze_for(copy.deepcopy(base), "head")
    two_steps(freeze_for(base, "head"))
    kept = {name: tensor.clone() for name, tensor in adapter_state(base).items()}
    load_adapter_state(other, kept)
    for (name, one), two in zip(base.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_what_does_not_fit_is_refused_whole(base: ClickHRNet) -> None:
    freeze_for(base, "head")
    kept = {name: torch.zeros_like(tensor) for name, tensor in adapter_state(base).items()}
    before = copy.deepcopy(base.state_dict())
    last = list(kept)[-1]
    for wrong, match in (
        ({**kept, "more": torch.zeros(1)}, "1 unexpected \\(unexpected more\\)"),
        ({name: tensor for name, tensor in kept.items() if name != last}, f"1 tensors missing.*{last}"),
        ({**kept, last: torch.zeros(2, 3)}, "has shape \\(2, 3\\), the model expects"),
    ):
        with pytest.raises(HrsegError, match=match):
            load_adapter_state(base, wrong)
        assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


class Tokens(InteractiveModel):
    """A network that normalises tokens, not maps, and one of whose layers training leaves alone."""

    name = "tokens"
    config: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Conv2d(4, 6, 1), nn.Linear(6, 6)
        self.norm, self.batch = nn.LayerNorm(6), nn.BatchNorm1d(6)
        self.classify = nn.Linear(6, 1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        backbone = [*self.layer.parameters(), *self.norm.parameters(), *self.batch.parameters()]
        heads, fixed = list(self.classify.parameters()), list(self.embed.parameters())
        return {"heads": heads, "backbone": backbone, "fixed": fixed}

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        x = self.embed(image).flatten(2).transpose(1, 2)
        x = self.batch(self.norm(self.layer(x)).transpose(1, 2)).transpose(1, 2)
        return {"logits": self.classify(x).transpose(1, 2).unflatten(2, image.shape[-2:])}


STATISTICS = {"batch.running_mean", "batch.running_var", "batch.num_batches_tracked"}
NORMS = {f"{name}.{part}" for name in ("norm", "batch") for part in ("weight", "bias")}


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ("full", NORMS | STATISTICS | {"layer.weight", "layer.bias", "classify.weight", "classify.bias"}),
        ("head", {"classify.weight", "classify.bias"}),
        ("bn", NORMS | STATISTICS),
        ("bitfit", {"layer.bias", "norm.bias", "batch.bias", "classify.bias"}),
    ],
)
def test_controls_of_a_network_without_maps(two_steps: Any, part: str, wanted: set[str]) -> None:
    """Statistics of any batch normalisation stand still or are kept; what is fixed stays fixed in every control."""
    model = freeze_for(Tokens(), part)
    before, after = two_steps(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == wanted == set(adapter_state(model))
    for norm in (module for module in model.modules() if isinstance(module, StillBatchNorm)):
        hold(norm, still=False)
    assert type(model.batch) is nn.BatchNorm1d


@pytest.mark.parametrize("part", ["head", "bn"])
def test_a_part_that_a_network_lacks_is_named(part: str) -> None:
    model = Tokens()
    model.parameter_groups = lambda: {"new": list(model.parameters())}  # type: ignore[method-assign]
    model.norm = model.batch = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(HrsegError, match=r"'tokens' has no (classifiers|normalisations.*); choose"):
        freeze_for(model, part)
    assert all(parameter.requires_grad for parameter in model.parameters())
