"""The resampling adapters: recorded resampling and costs, identity at the start, what training may move."""

from __future__ import annotations

import copy
import json
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from reference import GOLDEN, FakeNetwork
from torch import Tensor, nn

from hrseg_cli.adapters import adapter_state, load_adapter_state
from hrseg_cli.adapters.resample import Resampled, bilinear_up, edges, halved, mean_down
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.hrnet import h18, h18_baseline
from hrseg_cli.models.hrnet.network import ClickHRNet
from hrseg_cli.models.parts.click_maps import disk_maps, valid_slots

RECORDED = np.load(GOLDEN / "resample.npz")
COSTS = json.loads((GOLDEN / "adapters.json").read_text())["resample"]
POINTS = torch.tensor([[[20.0, 30, 0], [-1, -1, -1], [5, 40, 1], [0, 0, 2]]])
EVERY: list[dict[str, Any]] = [
    {"design": "a", "sobel": False},
    {"design": "a", "skip": True, "first_layer": True},
    {"design": "b_lite", "width": 8},
    {"design": "b", "width": 4},
    {"design": "c", "width": 4, "first_layer": True},
    {"design": "c", "width": 4, "sobel": False},
]


def picture(height: int, width: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).random((1, 4, height, width), dtype=np.float32))


def recorded(name: str) -> Tensor:
    return torch.from_numpy(RECORDED[name])


@torch.no_grad()
def test_resampling_starts_as_recorded() -> None:
    torch.testing.assert_close(mean_down(3, 3)(recorded("x")), recorded("down"), atol=1e-6, rtol=0)
    up = bilinear_up()
    assert torch.equal(up.weight, recorded("KB"))
    enlarged = up(F.pad(recorded("y"), (1, 1, 1, 1), mode="replicate"))
    torch.testing.assert_close(enlarged, recorded("up"), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(46, 70), (33, 47)])
@pytest.mark.parametrize("options", EVERY, ids=lambda o: "-".join(map(str, o.values())))
def test_the_start_is_the_base_at_half_the_size(
    base: ClickHRNet, options: dict[str, Any], size: tuple[int, int]
) -> None:
    image = picture(*size)
    even = F.pad(image, (0, size[1] % 2, 0, size[0] % 2), mode="replicate")
    near = torch.where(POINTS[..., :2] < 0, POINTS[..., :2], (POINTS[..., :2] + 0.5) / 2 - 0.5)
    near[0, 3] = 0  # the corner click
    small = base(F.avg_pool2d(even, 2), torch.cat([near, POINTS[..., 2:]], -1))
    model = Resampled(base, **options).eval()
    out = model(image, POINTS)
    assert set(out) == {"logits", "base", "aux"}
    for name, of in (("logits", "logits"), ("base", "logits"), ("aux", "aux")):
        want = F.interpolate(small[of], scale_factor=2, mode="bilinear", align_corners=False)
        torch.testing.assert_close(out[name], want[..., : size[0], : size[1]], atol=1e-6, rtol=1e-6)


class Bare(InteractiveModel):
    """A base that costs nothing."""

    name = "bare"

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        return {"logits": image[:, :1]}

    def click_features(self, image: Tensor, points: Tensor) -> Tensor:
        return image[:, 1:]


def macs(model: nn.Module) -> dict[str, float]:
    """10^9 multiplications of convolutions at 640 x 960, the base's and the others', counted on shapes alone."""
    total = {"base": 0, "extra": 0}

    def count(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            places = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
            key = "base" if name.startswith("base.") else "extra"
            total[key] += places.shape[1:].numel() * module.weight[0].numel()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(count(name))
    model(torch.empty(1, 4, 640, 960, device="meta"), torch.empty(1, 2, 3, device="meta"))
    return {key: value / 1e9 for key, value in total.items()}


@torch.no_grad()
@pytest.mark.parametrize("case", sorted(COSTS))
def test_costs_are_the_recorded_ones(case: str) -> None:
    kind, _, width = case.partition("_c")
    options: dict[str, Any] = (
        {"design": "a", "sobel": case.endswith("sobel")}
        if kind.startswith("A")
        else {"design": {"Blite": "b_lite"}.get(kind, kind.lower()), "width": int(width)}
    )
    with torch.device("meta"):
        model = Resampled(h18() if kind == "C" else Bare(), **options).eval()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == COSTS[case]["trainable"]
    found = macs(model)
    assert found["extra"] == pytest.approx(COSTS[case]["extra_gmacs"], abs=1e-9)
    if kind == "C":
        # The recorded base runs OCR's dead queries (128 -> 64 -> 64) and its values (64 -> 128) at all 80 x 120 places,
        # and the dead keys at one; ours runs the values at one only.
        queries, values = 128 * 64 + 64 * 64, 64 * 128
        spared = (9600 * queries + queries + 9599 * values) / 1e9
        assert found["base"] == pytest.approx(COSTS[case]["base_gmacs"] - spared, abs=1e-9)


@pytest.mark.parametrize("options", EVERY, ids=lambda o: "-".join(map(str, o.values())))
def test_training_moves_the_adapter_and_nothing_else(base: ClickHRNet, two_steps: Any, options: dict[str, Any]) -> None:
    """Every tensor of the adapter is reached by a gradient within two steps; the base stays to the bit."""
    model = Resampled(base, **options)
    before, after = two_steps(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    first = {"base.feature_extractor.conv1.weight"} if options.get("first_layer") else set()
    assert changed == {name for name in before if not name.startswith("base.")} | first == set(adapter_state(model))


def test_every_parameter_is_in_one_group(base: ClickHRNet) -> None:
    for options in EVERY:
        model = Resampled(base, **options)
        grouped = [id(p) for parameters in model.parameter_groups().values() for p in parameters]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_the_base_stays_in_eval_mode(base: ClickHRNet) -> None:
    """Its dropout and its statistics: it is the function that is being adapted."""
    model = Resampled(base, design="b", width=4).train()
    assert model.training
    assert model.correct.training
    assert not any(module.training for module in model.base.modules())


def test_what_was_kept_makes_the_same_model_of_the_base(base: ClickHRNet, two_steps: Any) -> None:
    options: dict[str, Any] = {"design": "c", "width": 4, "first_layer": True}
    other = Resampled(copy.deepcopy(base), **options).eval()
    model = Resampled(base, **options)
    two_steps(model)
    with torch.no_grad():
        answer = model(picture(64, 96), POINTS)["logits"]
        assert not torch.equal(other(picture(64, 96), POINTS)["logits"], answer)
        load_adapter_state(other, {name: tensor.clone() for name, tensor in adapter_state(model).items()})
        assert torch.equal(other(picture(64, 96), POINTS)["logits"], answer)


@given(st.lists(st.tuples(st.integers(-1, 63), st.integers(-1, 95)), min_size=1, max_size=5))
def test_halved_clicks_mark_the_same_place(places: list[tuple[int, int]]) -> None:
    """What is a click stays one, padding stays padding, and a disk covers the four pixels its centre stood on."""
    points = torch.tensor([[[row, col, order] for order, (row, col) in enumerate(places)]], dtype=torch.float32)
    half = halved(points)
    assert torch.equal(valid_slots(half), valid_slots(points))
    assert torch.equal(half[..., 2], points[..., 2])
    for (row, col), (near_row, near_col) in zip(places, half[0, :, :2].tolist(), strict=True):
        if max(row, col) < 0:
            assert (near_row, near_col) == (-1, -1)
        else:
            corner = max(row, col) == 0
            assert near_row == (0 if corner else row / 2 - 0.25)
            assert near_col == (0 if corner else col / 2 - 0.25)


@torch.no_grad()
def test_the_base_sees_disks_of_its_own_size(base: ClickHRNet) -> None:
    """Clicks are drawn anew at half the size; disks of the full size, averaged, would be a quarter of the area."""
    points = torch.tensor([[[31.0, 41, 0], [-1, -1, -1]]])
    disk = disk_maps(halved(points), 32, 48, 5)
    assert disk.sum() > 70
    rows, cols = disk[0, 0].nonzero(as_tuple=True)
    assert (rows.float().mean().item(), cols.float().mean().item()) == pytest.approx((15.25, 20.25), abs=0.5)


def test_edges_are_opencvs_sobel() -> None:
    rgb = picture(21, 34)[0, :3].numpy()
    grey = np.tensordot([0.299, 0.587, 0.114], rgb, 1)
    by_col, by_row = (
        cv2.Sobel(grey, cv2.CV_64F, *order, ksize=3, scale=1 / 8, borderType=cv2.BORDER_REPLICATE)
        for order in ((1, 0), (0, 1))
    )
    want = np.sqrt(by_col**2 + by_row**2 + 1e-6)
    np.testing.assert_allclose(edges(picture(21, 34)[:, :3])[0, 0].numpy(), want, atol=1e-6)


@torch.no_grad()
def test_bases_of_other_inputs() -> None:
    """A base without previous mask, and one that is no HRNet."""
    model = Resampled(h18_baseline(), design="b", width=4).eval()
    assert not model.with_prev_mask
    assert model(picture(32, 48)[:, :3], POINTS)["logits"].shape == (1, 1, 32, 48)
    fake = FakeNetwork()
    small = fake(F.avg_pool2d(picture(32, 48), 2), halved(POINTS))["logits"]
    want = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    out = Resampled(fake, design="a").eval()(picture(32, 48), POINTS)
    torch.testing.assert_close(out["logits"], want, atol=1e-5, rtol=0)
    assert set(out) == {"logits", "base"}


def test_options_that_do_not_fit_are_refused(base: ClickHRNet) -> None:
    for options, match in (
        ({"design": "b", "skip": True}, "skip"),
        ({"design": "a", "width": 8}, "width 8"),
        ({"design": "b", "width": 10}, "width 10"),
        ({"design": "c", "width": 0}, "width 0"),
    ):
        with pytest.raises(HrsegError, match=match):
            Resampled(base, **options)  # type: ignore[arg-type]
    for options in ({"design": "c"}, {"design": "a", "first_layer": True}):
        with pytest.raises(HrsegError, match="'fake'"):
            Resampled(FakeNetwork(), **options)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match=r"design 'b-lite'.*'b_lite'"):
        Resampled(base, design="b-lite")  # type: ignore[arg-type]
