"""Inference forms compared with recorded outputs and with the plain network, for everything that can be loaded."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from reference import GOLDEN, case, deterministic_weights

from hrseg_cli import catalog
from hrseg_cli.adapters.lora import attach_lora
from hrseg_cli.adapters.resample import Resampled
from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.engine.devices import best_precision, one_thread_for_now
from hrseg_cli.engine.fast import fast, open_fast
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Sample
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.grabcut import GrabCut
from hrseg_cli.models.hrnet import inference
from hrseg_cli.models.hrnet.inference import FastClickHRNet
from hrseg_cli.models.hrnet.network import ClickHRNet
from hrseg_cli.models.parts.folding import folded
from hrseg_cli.recipe import load_protocol

RECORDED = np.load(GOLDEN / "network.npz")
STATES = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))
POINTS = torch.tensor([[[20.0, 30.5, 0], [-1, -1, -1], [5, 40, 1], [31, 0, 2]]])


def build(model: ClickHRNet) -> ClickHRNet:
    model.load_state_dict(deterministic_weights(model.state_dict()))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def h18s() -> ClickHRNet:
    return build(catalog.resolve("model", "h18s")())


def picture(height: int, width: int, channels: int = 4) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).random((1, channels, height, width), dtype=np.float32))


def assert_same(quick: InteractiveModel, plain: InteractiveModel, x: torch.Tensor, share: float = 2e-5) -> None:
    """Equal to within a share of the logits' spread: the effect of reordering sums in single precision."""
    with torch.inference_mode():
        want, got = plain(x, POINTS)["logits"], quick(x, POINTS)["logits"]
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    assert float((got - want).abs().max()) <= share * max(float(want.max() - want.min()), 0.1)


@torch.inference_mode()
@pytest.mark.parametrize("variant", ["h18s", "h18", *sorted(STATES["variants"])])
def test_recorded_outputs_hold(variant: str) -> None:
    named = variant not in STATES["variants"]
    options = {} if named else STATES["variants"][variant]["options"]
    plain = build(catalog.resolve("model", variant)() if named else ClickHRNet(**options))
    rng = np.random.default_rng(1)
    parts = [rng.random((1, 3, 101, 75)), rng.random((1, 1, 101, 75))]
    x = torch.from_numpy(np.concatenate(parts, 1)[:, : 3 + plain.with_prev_mask].astype(np.float32))
    points = torch.from_numpy(RECORDED[f"{variant if named else 'h18s'}_B_points"])
    quick = fast(plain)
    assert isinstance(quick, FastClickHRNet)
    recorded = RECORDED[f"{variant}_B_logits" if named else f"variant_{variant}_logits"]
    np.testing.assert_allclose(quick(x, points)["logits"].numpy()[..., 1::3, 1::3], recorded, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(33, 47), (1, 64), (200, 31), (129, 130), (8, 9)])
def test_any_size(h18s: ClickHRNet, size: tuple[int, int]) -> None:
    assert_same(fast(h18s), h18s, picture(*size))


@pytest.mark.parametrize("height", [271, 300])
def test_bands_leave_no_trace(h18s: ClickHRNet, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stem processes large images in bands of rows; here a small one, in bands of 32 rows at 1/4 resolution."""
    monkeypatch.setattr(inference, "STEM_BAND", 0)
    assert_same(fast(h18s), h18s, picture(height, 40))


@torch.inference_mode()
def test_a_batch_is_its_images(h18s: ClickHRNet) -> None:
    quick = fast(h18s)
    x = torch.cat([picture(48, 40), picture(48, 40).flip(3)])
    both = quick(x, torch.cat([POINTS, POINTS]))["logits"]
    assert torch.equal(both, torch.cat([quick(one[None], POINTS)["logits"] for one in x]))


def test_lora_is_folded_and_nothing_is_touched() -> None:
    model = attach_lora(build(catalog.resolve("model", "h18s")()), rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert_same(fast(model), model, picture(40, 56))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("options", [{"design": "a", "skip": True}, {"design": "b_lite"}, {"design": "c", "width": 4}])
def test_a_resampling_adapter_around_the_fast_base(h18s: ClickHRNet, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Resampled(h18s, **options).eval()
    for parameter in model.correct.parameters():
        parameter.data.normal_(0, 0.1)
    quick = fast(model)
    assert_same(quick, model, picture(46, 71))
    assert model.base is h18s
    assert quick.enlarge == 2


def test_design_c_stays_in_single_precision(h18s: ClickHRNet) -> None:
    """The adapter reads inner features of its base, after the point where inputs are cast to bf16."""
    torch.manual_seed(0)
    model = Resampled(h18s, design="c", width=4).eval()
    with pytest.raises(HrsegError, match=r"`precision` bf16: .*supports only fp32"):
        fast(model, "bf16")
    assert_same(fast(model), model, picture(46, 71))


def test_without_a_precision_the_processor_decides() -> None:
    """As annotate opens models: the provenance names the precision, and a model with only one keeps it."""
    assert open_model("h18s", precision=None)[1].get("precision", "fp32") == best_precision("cpu")
    assert "precision" not in open_model("grabcut", precision=None)[1]


def test_other_models_are_themselves() -> None:
    model = GrabCut()
    assert fast(model) is model


def test_the_same_clicks(h18s: ClickHRNet) -> None:
    plan = Plan(load_protocol("ritm", ["zoom.target=128"]), {"iou": 0.9}, max_clicks=4)
    sample = Sample("8", "synthetic", *(pixels[::2, ::2] for pixels in case(8)))
    (plain, _), (quick, _) = (simulate(sample, model, plan) for model in (h18s, fast(h18s)))
    assert len(plain.clicks) == 4
    assert quick.clicks == plain.clicks
    np.testing.assert_allclose(quick.scores["iou"], plain.scores["iou"], atol=1e-4)


FIRST_CLICK = """
import sys
import numpy as np, torch
from hrseg_cli.engine.benchmark import peak_memory
from hrseg_cli.engine.fast import open_fast
from hrseg_cli.engine.session import Session
from hrseg_cli.interaction import Click
from hrseg_cli.recipe import load_protocol
torch.set_num_threads(1)
image = np.random.default_rng(0).integers(0, 256, (2048, 3072, 3), np.uint8)
Session(open_fast(sys.argv[1])[0], image, load_protocol("ritm"), undo=0).click(Click(1000, 1500, True))
print(peak_memory() / 2**30)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine
def test_memory_of_a_first_click_on_six_megapixels(h18s: ClickHRNet, tmp_path: Path) -> None:
    """The whole image and its mirrored copy, in a new process: at most 1.5 GiB, imports included."""
    save_checkpoint(h18s, tmp_path / "model.safetensors", {})
    command = [sys.executable, "-c", FIRST_CLICK, str(tmp_path / "model.safetensors")]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 1.5


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_is_quicker_than_the_plain_network(h18s: ClickHRNet) -> None:
    """CPU time of one thread, alternating, so that load on the machine affects both; never absolute times."""
    ways = {"plain": h18s, "quick": fast(h18s)}
    x = picture(256, 384)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with one_thread_for_now(), torch.inference_mode():
        for _ in range(12):
            for name, model in ways.items():
                started = time.process_time()
                model(x, POINTS)
                seconds[name].append(time.process_time() - started)
    plain, quick = (median(some[2:]) for some in seconds.values())  # the first passes get ready for the size
    assert plain > 1.2 * quick


def test_a_precision_is_told_and_checked(h18s: ClickHRNet, tmp_path: Path) -> None:
    save_checkpoint(h18s, tmp_path / "model.safetensors", {})
    spec = str(tmp_path / "model.safetensors")
    assert "precision" not in open_fast(spec)[1]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert open_fast(spec, precision="bf16")[1]["precision"] == "bf16"
    assert "precision" not in open_fast("grabcut", precision=None)[1]
    with pytest.raises(HrsegError, match="`precision` bf16: 'grabcut' supports only fp32"):
        open_fast("grabcut", precision="bf16")
    with pytest.raises(HrsegError, match="'clicknet_m' supports only fp32"):  # the name typed, not the family's
        open_fast("clicknet_m", precision="bf16")
    with pytest.raises(UnknownName, match="Did you mean 'bf16'"):
        open_fast(spec, precision="bf6")


def test_bf16_for_accelerators_is_autocast_with_weights_cast_once(h18s: ClickHRNet) -> None:
    quick = h18s.for_inference("bf16", keep_layers=True)
    plain = folded(h18s).to(memory_format=torch.channels_last)
    x = picture(64, 48)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        want = plain(x, POINTS)["logits"].float()
    with torch.inference_mode():
        assert torch.equal(quick(x, POINTS)["logits"], want)
    assert next(h18s.parameters()).dtype == torch.float32


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bf16")
def test_bf16_is_near(h18s: ClickHRNet) -> None:
    """With untrained weights, compare rounding errors of 8-bit mantissas only with the spread of the logits."""
    assert_same(fast(h18s, "bf16"), h18s, picture(96, 80), share=0.15)


def test_bf16_is_refused_before_a_question(h18s: ClickHRNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(HrsegError, match="`precision` bf16: this processor"):
        fast(h18s, "bf16")


def test_weights_lie_as_each_size_wants_them(h18s: ClickHRNet) -> None:
    """Results do not depend on earlier input sizes, and no weight layout is cached twice."""
    quick, fresh = fast(h18s), fast(h18s)
    assert isinstance(quick, FastClickHRNet)
    sizes = [(416, 416), (320, 320), (256, 171), (96, 80)]
    for size in sizes:
        quick(picture(*size), POINTS)
    x = picture(96, 80)
    assert torch.equal(quick(x, POINTS)["logits"], fresh(x, POINTS)["logits"])
    last = quick.stages.modules[-1][-1].branches[-1][-1][-1]
    assert len(last.packed) == len(sizes)
    assert 1 <= len(last.layouts) < len(sizes)
