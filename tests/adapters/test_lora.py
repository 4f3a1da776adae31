"""LoRA against loralib's and PEFT's recorded answers, and on a click network."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import GOLDEN
from torch import Tensor, nn

from hrseg_cli.adapters import adapter_state, load_adapter_state
from hrseg_cli.adapters.controls import StillBatchNorm
from hrseg_cli.adapters.lora import LoRA, LoRAConv2d, LoRAJoint, LoRALinear, attach_lora, merge, unmerge
from hrseg_cli.checkpoints.adapters import attached, read_adapter, save_adapter
from hrseg_cli.checkpoints.provenance import weights_hash
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.hrnet import h18
from hrseg_cli.models.hrnet.network import ClickHRNet
from hrseg_cli.models.simpleclick.network import SimpleClick

RECORDED = np.load(GOLDEN / "lora.npz")
COUNTS = json.loads((GOLDEN / "adapters.json").read_text())["lora"]
BACKBONE = ("extractor.conv1", "extractor.conv2", "layer1", "transition", "stage")
HEADS = ("ocr", "head")


def ask(model: nn.Module) -> Tensor:
    rng = np.random.default_rng(3)
    image = torch.from_numpy(rng.random((1, 4, 48, 64), dtype=np.float32))
    points = torch.tensor([[[20.0, 30, 0], [-1, -1, -1], [5, 40, 1], [-1, -1, -1]]])
    with torch.no_grad():
        logits: Tensor = model(image, points)["logits"]
    return logits


def shaken(model: nn.Module) -> nn.Module:
    """As after a training: additions that are not zero any more."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoRAConv2d):
                module.lora_B.normal_(std=0.02)
    return model


@pytest.mark.parametrize("case", ["k3", "k3s2", "k1", "peft"])
def test_outputs_and_merged_weights_are_the_recorded_ones(case: str) -> None:
    """loralib's Conv2d with bias, stride and 1 x 1; PEFT's with stride and bias."""
    told = {name.partition("__")[2]: RECORDED[name] for name in RECORDED.files if name.startswith(f"{case}__")}
    weight = torch.from_numpy(told["W"])
    stride, padding = int(told["stride"]), int(told["padding"])
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding, bias="b" in told)
    conv.weight.data = weight
    if conv.bias is not None:
        conv.bias.data = torch.from_numpy(told["b"])
    model = nn.Sequential(conv)
    kind = "conv" if case == "peft" else "loralib"
    attach_lora(model, kind=kind, rank=int(told["r"]), alpha=float(told["alpha"]))  # type: ignore[arg-type]
    assert isinstance(conv, LoRAConv2d)
    assert (conv.lora_A.shape, conv.lora_B.shape) == (told["A"].shape, told["B"].shape)
    conv.lora_A.data, conv.lora_B.data = torch.from_numpy(told["A"]), torch.from_numpy(told["B"])

    x, y = torch.from_numpy(told["x"]), torch.from_numpy(told["y"])
    torch.testing.assert_close(model(x), y, atol=1e-5, rtol=0)
    merge(model)
    merged = told["W_merged"] if "W_merged" in told else told["W"] + told["dW"]
    torch.testing.assert_close(conv.weight.detach(), torch.from_numpy(merged), atol=1e-6, rtol=0)
    torch.testing.assert_close(model(x), y, atol=1e-5, rtol=0)


def test_counts_are_the_recorded_ones_without_the_dead() -> None:
    """The four dead 1 x 1 convolutions of h18, 128 -> 64 -> 64 twice, were counted in the recorded numbers."""
    with torch.device("meta"):
        model = h18()
    for where, layers, dead in (
        ("backbone only (conv1..stage4)", BACKBONE, 0),
        ("OCR/heads only", HEADS, 4),
        ("stage4 + OCR/heads", ("stage4", *HEADS), 4),
    ):
        recorded = COUNTS[where]["8"]
        gone = 8 * 2 * ((128 + 64) + (64 + 64)) if dead else 0
        for kind, known in (("conv", "peft"), ("loralib", "loralib")):
            attach_lora(model, kind=kind, rank=8, layers=layers)  # type: ignore[arg-type]
            count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            assert count == recorded[known] - gone
            assert len(merge(model)) == recorded["n_layers"] - dead


@pytest.mark.parametrize("kind", ["conv", "loralib"])
def test_the_start_is_the_base_itself(base: ClickHRNet, kind: Any) -> None:
    before = ask(base)
    assert attach_lora(base, kind=kind) is base
    assert torch.equal(ask(base), before)
    # A begins as PyTorch's layers do: uniform, up to the inverse root of the inputs of an output.
    for layer in (module for module in base.modules() if isinstance(module, LoRA)):
        bound = layer.lora_A[0].numel() ** -0.5
        assert layer.lora_A.abs().max() <= bound
        if layer.lora_A.numel() > 200:
            assert layer.lora_A.abs().max() > 0.95 * bound


@pytest.mark.parametrize("kind", ["conv", "loralib"])
def test_groups_and_flat_kernels(kind: Any) -> None:
    """A grouped convolution with a kernel that is not square: identity at the start, one convolution after."""
    conv = nn.Conv2d(6, 4, (3, 1), groups=2, dilation=2)
    model, x = nn.Sequential(conv), torch.rand(2, 6, 9, 7)
    before = model(x)
    attach_lora(model, kind=kind, rank=2, alpha=4)
    assert torch.equal(model(x), before)
    shaken(model)
    assert isinstance(conv, LoRAConv2d)
    changed = conv.change()
    assert changed.abs().max() > 0
    want = nn.functional.conv2d(x, conv.weight + changed, conv.bias, dilation=2, groups=2)
    torch.testing.assert_close(model(x), want)


def test_kind_conv_has_the_rank_it_says_and_loralib_more() -> None:
    """What tells the kinds apart: the rank of the change as an (out, in k^2) matrix."""
    ranks = {}
    for kind in ("conv", "loralib"):
        conv = nn.Conv2d(8, 8, 3)
        shaken(attach_lora(nn.Sequential(conv), kind=kind, rank=2))
        assert isinstance(conv, LoRAConv2d)
        ranks[kind] = int(torch.linalg.matrix_rank(conv.change().flatten(1).double(), rtol=1e-5))
    assert ranks["conv"] == 2
    assert ranks["loralib"] > 2


@pytest.mark.parametrize("kind", ["conv", "loralib"])
def test_training_moves_every_addition_and_nothing_else(base: ClickHRNet, two_steps: Any, kind: Any) -> None:
    before, after = two_steps(attach_lora(base, kind=kind, rank=2))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name} == set(adapter_state(base))
    assert not any("f_pixel" in name or "f_object" in name for name in changed)


def test_adabn_moves_the_statistics_too(base: ClickHRNet, two_steps: Any) -> None:
    before, after = two_steps(attach_lora(base, rank=1, layers=["layer1"], adabn=True))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    dead = {name for name in before if "f_pixel" in name or "f_object" in name}
    assert changed == {name for name in before if "lora_" in name} | statistics - dead == set(adapter_state(base))
    assert all("layer1" in name for name in changed if "lora_" in name)


@pytest.mark.parametrize("kind", ["conv", "loralib"])
def test_merged_is_a_plain_model_and_can_be_taken_apart(base: ClickHRNet, kind: Any) -> None:
    """The merged model has the base's names and types; a copy (an averaged model) is not touched by it."""
    names = list(base.state_dict())
    twin = copy.deepcopy(base)
    shaken(attach_lora(base, kind=kind))
    spare, answer = copy.deepcopy(base), ask(base)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    assert (answer - ask(twin)).abs().max() > 1e-2

    apart = merge(base)
    torch.testing.assert_close(ask(base), answer, atol=1e-5, rtol=1e-5)
    assert list(base.state_dict()) == names
    assert not any(isinstance(module, LoRAConv2d) for module in base.modules())
    twin.load_state_dict(base.state_dict())
    assert torch.equal(ask(twin), ask(base))

    unmerge(base, apart)
    assert torch.equal(ask(base), answer)
    assert torch.equal(ask(spare), answer)
    assert set(weights) == set(base.state_dict())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.state_dict().items())


def test_what_was_kept_makes_the_same_model_of_the_base(base: ClickHRNet, two_steps: Any) -> None:
    other = attach_lora(copy.deepcopy(base), rank=2, adabn=True)
    two_steps(attach_lora(base, rank=2, adabn=True))
    load_adapter_state(other, {name: tensor.clone() for name, tensor in adapter_state(base).items()})
    assert torch.equal(ask(other), ask(base))
    with pytest.raises(HrsegError, match="does not fit this model"):
        load_adapter_state(attach_lora(merged(copy.deepcopy(base)), rank=3), adapter_state(base))


def merged(model: nn.Module) -> nn.Module:
    merge(model)
    return model


def test_a_frozen_normalisation_stands_still_in_any_mode(base: ClickHRNet) -> None:
    attach_lora(base)
    norms = [module for module in base.train().modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, StillBatchNorm) and not norm.training for norm in norms)


def test_groups_are_the_network_without_overlap(base: ClickHRNet) -> None:
    def adapted(*layers: str) -> set[str]:
        return set(merge(attach_lora(copy.deepcopy(base), layers=layers)))

    groups = {group: adapted(group) for group in base.layer_groups}
    assert groups["stem"] == {
        *(f"feature_extractor.conv{k}" for k in (1, 2)), "maps_transform.0", "maps_transform.2"
    }  # fmt: skip
    assert groups["heads"] == {f"feature_extractor.{name}" for name in ("cls_head", "aux_head.0", "aux_head.3")}
    assert sum(map(len, groups.values())) == len(adapted())
    assert set.union(*groups.values()) == adapted(*base.layer_groups) == adapted()


def test_options_that_cannot_be_meant_are_refused(base: ClickHRNet) -> None:
    with pytest.raises(HrsegError, match=r"layers: must be a list; write adapter.options.layers=\[stage4\]"):
        attach_lora(base, layers="stage4")  # type: ignore[arg-type]
    with pytest.raises(HrsegError, match=r"'stage5'.*known:.*stage4"):
        attach_lora(base, layers=["stage4", "stage5"])
    with pytest.raises(HrsegError, match="'f_pixel'"):
        attach_lora(base, layers=["f_pixel"])
    with pytest.raises(HrsegError, match="rank 0"):
        attach_lora(base, rank=0)
    with pytest.raises(UnknownName, match=r"kind of LoRA 'lora-lib'.*'loralib'"):
        attach_lora(base, kind="lora-lib")  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in base.parameters())  # nothing was done
    attach_lora(base)
    with pytest.raises(HrsegError, match="already"):
        attach_lora(base)


class Fused(nn.Module):
    """Attention with one linear layer for queries, keys and values, and a perceptron of PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        y: Tensor = self.out(nn.functional.scaled_dot_product_attention(query, key, value))
        return y + self.inner(y, y, y, need_weights=False)[0]


@pytest.mark.parametrize("kind", ["conv", "loralib"])
def test_a_linear_layer_gets_the_product_of_two_matrices(kind: Any) -> None:
    """Hu et al.: W x + alpha / r B A x, B zero at the start; merged it is one matrix of the layer's own class."""
    linear = nn.Linear(6, 5)
    model, x = nn.Sequential(linear), torch.rand(3, 7, 6)
    before = model(x)
    attach_lora(model, kind=kind, rank=2, alpha=6)
    assert isinstance(linear, LoRALinear)
    assert (linear.lora_A.shape, linear.lora_B.shape) == ((2, 6), (5, 2))
    assert torch.equal(model(x), before)
    torch.nn.init.normal_(linear.lora_B)
    want = before + 3 * (x @ linear.lora_A.T @ linear.lora_B.T)
    torch.testing.assert_close(model(x), want)
    answer = model(x)
    apart = merge(model)
    assert type(linear) is nn.Linear
    assert torch.equal(model(x), answer)
    unmerge(model, apart)
    assert torch.equal(model(x), answer)


def test_attention_is_adapted_but_not_what_pytorch_computes_inside(caplog: pytest.LogCaptureFixture) -> None:
    """nn.MultiheadAttention reads its weights without asking their layers: an addition there would do nothing."""
    model = attach_lora(Fused(), rank=2)
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoRA)}
    assert adapted == {"qkv", "out"}
    assert caplog.messages == ["LoRA does not support 1 of the layers; they stay frozen: inner"]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(2, 5, 8)).square().mean().backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert set(merge(attach_lora(Fused(), layers=["qkv"]))) == {"qkv"}
    with pytest.raises(HrsegError, match=r"no adaptable layer has 'inner' in its name; known: out, qkv"):
        attach_lora(Fused(), layers=["inner"])
    with pytest.raises(HrsegError, match="no linear or convolution layer"):
        attach_lora(nn.Sequential(nn.MultiheadAttention(8, 2), nn.LayerNorm(8)))


@pytest.mark.parametrize(("count", "told"), [(3, "1, 2, 3"), (4, "1, 2, 3 and 1 more")])
def test_at_most_three_unsupported_layers_are_named(count: int, told: str, caplog: pytest.LogCaptureFixture) -> None:
    """All of a network's hundreds would fill the screen."""
    model = nn.Sequential(nn.Linear(4, 6), *(nn.MultiheadAttention(4, 2) for _ in range(count)))
    attach_lora(model)
    assert caplog.messages == [f"LoRA does not support {count} of the layers; they stay frozen: {told}"]
    assert model[0].lora_A.shape == (4, 4), "rank 4, unless asked"


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_layers_whose_addition_would_be_lost_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """PyTorch's encoder layer reads the weights of its layers itself when it only answers, and a weight that is
    computed from others cannot be merged into."""
    torch.manual_seed(0)
    made = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), made)
    attach_lora(model, rank=2)
    assert [name for name, module in model.named_modules() if isinstance(module, LoRA)] == ["0"]
    assert caplog.messages == ["LoRA does not support 2 of the layers; they stay frozen: 1, 2"]
    model.eval()
    torch.nn.init.normal_(model[0].lora_B)  # type: ignore[arg-type]
    x = torch.rand(2, 5, 8)
    with torch.inference_mode():
        quick = model(x)
    torch.testing.assert_close(quick, model(x))


def test_a_convolution_that_computes_in_its_own_way_keeps_it() -> None:
    """A subclass is adapted through the way it convolves, one with a ``forward`` of its own is left alone."""

    class Scaled(nn.Conv2d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return 2 * super()._conv_forward(input, weight, bias)

    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).abs()

    model, x = nn.Sequential(Scaled(3, 4, 1), Own(4, 2, 1)), torch.rand(1, 3, 5, 5)
    before = model(x)
    attach_lora(model, rank=2)
    assert [isinstance(module, LoRA) for module in model] == [True, False]
    assert torch.equal(model(x), before)
    copied = copy.deepcopy(shaken(model))
    answer = model(x)
    assert not torch.equal(answer, before)
    assert torch.equal(copied(x), answer)
    merge(model)
    assert [type(module) for module in model] == [Scaled, Own]
    torch.testing.assert_close(model(x), answer)


# ---- attention -------------------------------------------------------------------------------------------------------

VIT: dict[str, Any] = {"width": 16, "depth": 4, "heads": 2, "size": [64, 64], "levels": [4, 8, 8, 8], "channels": 8}


def vit() -> SimpleClick:
    torch.manual_seed(0)
    return SimpleClick(**VIT).eval()


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        (["q"], 2 * 32),
        (["q", "v"], 2 * 64),
        (["qkv"], 2 * 96),
        (["projection"], 2 * 32),
        (["mlp"], 2 * 2 * 80),
        (["q", "k", "v", "projection", "mlp"], 2 * (96 + 32 + 160)),
    ],
)
def test_attention_is_adapted_by_group(layers: list[str], count: int) -> None:
    """Queries, keys and values are one layer in the files and three here: r (in + out) parameters each, in 4 blocks."""
    model = vit()
    before = ask(model)
    attach_lora(model, rank=2, layers=layers)
    torch.testing.assert_close(ask(model), before, atol=1e-6, rtol=0)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 4 * count


def test_an_update_of_queries_leaves_keys_and_values() -> None:
    model = vit()
    attach_lora(model, rank=2, layers=["q", "v"])
    joint = model.backbone.blocks[1].attn.qkv  # type: ignore[union-attr]
    assert isinstance(joint, LoRAJoint)
    with torch.no_grad():
        joint.lora_B.normal_()
    found = joint.change().detach()
    queries, keys, values = (
        joint.lora_B[:16] @ joint.lora_A[:2],
        torch.zeros(16, 16),
        joint.lora_B[16:] @ joint.lora_A[2:],
    )
    torch.testing.assert_close(found, torch.cat([queries, keys, values]).detach())


def test_attention_trained_merged_and_kept(two_steps: Any, tmp_path: Path) -> None:
    """It starts as the base. Frozen weights stay bit-identical; the merged model answers alike; the file makes the same
    model of the base."""
    base = vit()
    layers = ["q", "v", "projection", "mlp"]
    model = attach_lora(copy.deepcopy(base), rank=2, layers=layers)
    torch.testing.assert_close(ask(model), ask(base), atol=1e-6, rtol=0)
    before, after = two_steps(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(adapter_state(model))
    save_adapter(model, tmp_path / "a.safetensors", "lora", {"rank": 2, "layers": layers}, weights_hash(base), {})  # type: ignore[arg-type]
    read = read_adapter(tmp_path / "a.safetensors")
    assert read is not None
    loaded, _ = attached((copy.deepcopy(base), {}), read)
    answer = ask(model)
    assert torch.equal(ask(loaded), answer)
    merge(model)
    torch.testing.assert_close(ask(model), answer, atol=1e-5, rtol=0)
    assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]
