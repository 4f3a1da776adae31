"""TOAST against a recorded answer of the public code, and on Vision Transformers that click."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from reference import GOLDEN, drawn_weights
from torch import Tensor, nn

from hrseg_cli.adapters import adapter_state
from hrseg_cli.adapters.lora import attach_lora
from hrseg_cli.adapters.toast import Toast, TopDown, alike, toast, toast_lite
from hrseg_cli.checkpoints.adapters import save_adapter
from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.checkpoints.provenance import weights_hash
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.engine.cost import gmac
from hrseg_cli.engine.export import export
from hrseg_cli.engine.session import Session
from hrseg_cli.engine.views import Memory, Query, View, infer
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.models.clicknet import clicknet_s
from hrseg_cli.models.parts.meta import shapes_only
from hrseg_cli.models.parts.vit import Block, PatchEmbedding, whole_grid
from hrseg_cli.models.simpleclick import base as vit_b
from hrseg_cli.models.simpleclick.network import SimpleClick
from hrseg_cli.recipe import load_protocol

VIT: dict[str, Any] = {"width": 16, "depth": 4, "heads": 2, "size": [64, 64], "levels": [4, 8, 8, 8], "channels": 8}
SELECTS: tuple[Any, ...] = ("prompt", "clicks", "previous")


class Recorded(TopDown):
    """The network of the recorded answer: a class token, final norm, attention over the whole grid."""

    def __init__(self) -> None:
        super().__init__(32, 3)
        self.prompt = nn.Parameter(torch.zeros(32))
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(torch.zeros(1, 17, 32))
        self.patch_embed = PatchEmbedding(3, 32, 8)
        self.blocks = nn.ModuleList(Block(32, 4) for _ in range(3))
        self.norm = nn.LayerNorm(32, eps=1e-6)

    def features(self, image: Tensor, feedback: list[Tensor] | None) -> Tensor:
        tokens = self.patch_embed(image).flatten(1, 2)
        x = torch.cat([self.cls_token.expand(len(tokens), 1, -1), tokens], 1) + self.pos_embed
        x, grid = x[:, None], whole_grid(1, 17)
        for number, block in enumerate(self.blocks):
            x = block(x, grid, None if feedback is None else feedback[number])
        found: Tensor = self.norm(x)
        return found


@torch.no_grad()
def test_recorded_answer() -> None:
    network, told = Recorded(), np.load(GOLDEN / "toast.npz")
    network.load_state_dict(drawn_weights(network.state_dict()))
    image = torch.from_numpy(told["x"])
    first = network.features(image, None)
    np.testing.assert_allclose(first[:, 0], told["feats1"], atol=1e-4)
    assert network.prompt is not None
    mask = alike(first, network.prompt)
    np.testing.assert_allclose(mask[:, 0], told["mask"], atol=1e-4)
    feedback = network(first, mask)
    np.testing.assert_allclose(torch.stack(feedback)[:, :, 0], told["td"], atol=1e-4)
    for block in network.blocks:
        block.attn.qkv.bias[block.attn.qkv.rows("v")] *= 2  # type: ignore[union-attr,index,operator]  # as in the public code
    second = network.features(image, feedback)
    np.testing.assert_allclose(second[:, 0], told["feats2"], atol=1e-4)
    np.testing.assert_allclose(second[:, 0, 0], told["y"], atol=1e-4)


def vit() -> SimpleClick:
    torch.manual_seed(0)
    return SimpleClick(**VIT).eval()


def ask(model: nn.Module) -> Tensor:
    torch.manual_seed(5)
    points = torch.tensor([[[20.0, 30, 0], [-1, -1, -1], [5, 40, 1], [-1, -1, -1]]])
    with torch.no_grad():
        logits: Tensor = model(torch.rand(1, 4, 48, 70), points)["logits"]
    return logits


def shaken(model: Toast) -> Toast:
    """As after a training: feedback that is not zero any more."""
    torch.manual_seed(2)
    with torch.no_grad():
        for tensor in adapter_state(model).values():
            tensor += 0.3 * torch.randn_like(tensor)
    return model


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("kind", [toast, toast_lite])
def test_the_start_is_the_base_and_training_moves_only_the_path(kind: Any, select: Any, two_steps: Any) -> None:
    model = vit()
    before = ask(model)
    adapted = kind(model, select=select)
    torch.testing.assert_close(ask(adapted), before, atol=1e-6, rtol=0)
    start, end = two_steps(adapted)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved
    assert moved <= set(adapter_state(adapted))
    assert not any(name.startswith("base.") for name in adapter_state(adapted))
    assert not torch.equal(ask(shaken(adapted)), before)


def test_counts_are_the_published_ones() -> None:
    """On ViT-B: decoders and prompt; for Lite LoRA of rank 4 on the decoders, P and prompt."""
    for kind, count in ((toast, 14_155_776 + 768), (toast_lite, 147_456 + 589_824 + 768)):
        with shapes_only():
            adapted = kind(vit_b(), select="prompt")
        assert sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad) == count


def test_what_is_selected() -> None:
    """By a prompt: similar tokens. By clicks: the mean token of the positive ones. By the previous mask: its share."""
    adapted = toast(vit(), select="clicks")
    torch.manual_seed(0)
    seen = torch.randn(1, 3, 4, 16)
    points = torch.tensor([[[20.0, 40, 0], [47, 63.5, 1], [-1, -1, -1], [0, 0, 2], [-1, -1, -1], [-1, -1, -1]]])
    previous = torch.zeros(1, 1, 48, 64)
    previous[..., 16:24, 32:48] = 1
    wanted = (seen[0, 1, 2] + seen[0, 2, 3]) / 2
    plain = torch.nn.functional.cosine_similarity(seen, wanted.expand_as(seen), dim=-1).clamp(0, 1)
    torch.testing.assert_close(adapted.selected(seen, previous, points)[..., 0], plain)
    assert not adapted.selected(seen, previous, torch.full_like(points, -1)).any()
    adapted.choose("previous", 2)
    expected = torch.zeros(1, 3, 4, 1)
    expected[0, 1, 2] = 0.5
    assert torch.equal(adapted.selected(seen, previous, points), expected)
    adapted.choose("prompt", 2)
    assert adapted.path.prompt is not None
    with torch.no_grad():
        adapted.path.prompt.copy_(seen[0, 2, 1])
    assert float(adapted.selected(seen, previous, points)[0, 2, 1]) == pytest.approx(1)


def test_a_pretuned_path_is_kept_and_tuned_further(tmp_path: Path) -> None:
    """BASE+PRETUNED as a base of TOAST-Lite, and BASE+PRETUNED+LITE as a model."""
    base = vit()
    save_checkpoint(base, tmp_path / "base.safetensors", {})
    pretuned = shaken(toast(copy.deepcopy(base), select="clicks"))
    options = {"select": "clicks"}
    save_adapter(pretuned, tmp_path / "path.safetensors", "toast", options, weights_hash(base), {})
    both = f"{tmp_path / 'base.safetensors'}+{tmp_path / 'path.safetensors'}"
    loaded, _ = load_model(both)
    assert torch.equal(ask(loaded), ask(pretuned))
    known = weights_hash(loaded)
    for kind in (toast, toast_lite):
        further = kind(copy.deepcopy(loaded).requires_grad_(True), select="clicks")  # as a training starts
        assert {name.split(".")[0] for name in adapter_state(further)} == {"path"}
    lite = toast_lite(loaded, select="clicks")
    torch.testing.assert_close(ask(lite), ask(pretuned), atol=1e-6, rtol=0)
    save_adapter(shaken(lite), tmp_path / "lite.safetensors", "toast_lite", options, known, {})
    again, _ = load_model(f"{both}+{tmp_path / 'lite.safetensors'}")
    assert torch.equal(ask(again), ask(lite))
    assert not torch.equal(ask(again), ask(pretuned))


def test_lora_in_the_base_is_part_of_it() -> None:
    """Its values are computed by weights, which the feedback reads too."""
    model = attach_lora(vit(), rank=2)
    with torch.no_grad():
        for name, tensor in adapter_state(model).items():
            if "lora_B" in name:
                tensor.normal_()
    before = ask(model)
    torch.testing.assert_close(ask(toast(model)), before, atol=1e-5, rtol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "told"),
    [({"select": "mask"}, "select is mask; use one of prompt, clicks, previous"), ({"passes": 3}, "must be 1 or 2")],
)
def test_wrong_options(change: dict[str, Any], told: str) -> None:
    with pytest.raises(HrsegError, match=told):
        toast(vit(), **change)


def test_other_networks_are_refused() -> None:
    with pytest.raises(HrsegError, match="needs a Vision Transformer, and clicknet is not one; use another"):
        toast_lite(clicknet_s())


# ---- one pass --------------------------------------------------------------------------------------------------------


def session(model: nn.Module, photo: np.ndarray) -> Session:
    return Session(model, photo, load_protocol("plain"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("passes", "counts"), [(1, [1, 1, 1]), (2, [2, 2, 2])])
def test_passes_of_the_blocks_are_counted(passes: int, counts: list[int]) -> None:
    model = shaken(toast(vit(), select="clicks", passes=passes))
    clicks = session(model, np.zeros((48, 64, 3), np.uint8))
    with patch.object(model.base, "attend", wraps=model.base.attend) as attend:
        for number, wanted in enumerate(counts):
            clicks.click(Click(10 * number + 5, 20, True))
            assert attend.call_count == wanted * (number + 1)


@pytest.mark.slow
def test_costs_are_those_of_a_click_with_feedback() -> None:
    base, size = vit(), (48, 64)
    plain, one, two = gmac(base, size), gmac(toast(vit(), passes=1), size), gmac(toast(vit()), size)
    tokens, layers = 12, 3 * 4 * 16 * 16  # two of the path and one of the values in each of 4 blocks
    assert one - plain == pytest.approx(tokens * (layers + 16 * 16) / 1e9)
    assert plain < one < two


def test_one_pass_feeds_back_the_previous_click() -> None:
    """The first click is the base's; the second one sees the first one's tokens. Undo leads to the same answers."""
    model, plain = shaken(toast(vit(), select="clicks", passes=1)), vit()
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    one, two = Click(20, 30, True), Click(40, 10, False)
    played, other = session(model, photo), session(plain, photo)
    played.click(one), other.click(one)
    assert torch.equal(played.state.probability, other.state.probability)
    first = played.state
    played.click(two)
    second = played.state.probability
    with torch.inference_mode():
        image = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
        features, points = model.encode(image), torch.tensor([[[20.0, 30, 0], [-1, -1, -1]]])
        _, memory = model.recall(features, torch.zeros(1, 1, 48, 64), points, None)
        points = torch.tensor([[[20.0, 30, 0], [40, 10, 0]]])
        outputs, _ = model.recall(features, first.probability, points, memory)
        blind, _ = model.recall(features, first.probability, points, None)
    torch.testing.assert_close(second, outputs["logits"].sigmoid())
    assert not torch.allclose(second, blind["logits"].sigmoid(), atol=1e-4)
    played.undo()
    played.click(two)
    assert torch.equal(played.state.probability, second)


@torch.inference_mode()
def test_memories_of_a_batch_are_apart() -> None:
    """An object at its first click next to one at its second, with mirror images."""
    model = shaken(toast(vit(), select="clicks", passes=1))
    torch.manual_seed(1)
    views = [View(torch.rand(1, 3, 32, 48)) for _ in range(2)]
    start = Memory({})
    infer(model, [Query(views[0], torch.zeros(1, 1, 32, 48), [Click(3, 4, True)], True, None, start)])
    assert set(start.after) == {False, True}

    def queries() -> list[Query]:
        return [
            Query(view, torch.rand(1, 1, 32, 48), [Click(9, 9, True)], True, None, Memory(before))
            for view, before in zip(views, (start.after, {}), strict=True)
        ]

    torch.manual_seed(2)
    together = infer(model, queries())
    torch.manual_seed(2)
    alone = torch.cat([infer(model, [query]) for query in queries()])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("select", SELECTS)
def test_a_graph_has_both_passes(select: Any, tmp_path: Path) -> None:
    export(shaken(toast(vit(), select=select)), tmp_path / "toast.onnx", {})
    with pytest.raises(HrsegError, match="no previous click to feed back"):
        export(toast(vit(), select=select, passes=1), tmp_path / "one.onnx", {})
