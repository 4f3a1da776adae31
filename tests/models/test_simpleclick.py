"""SimpleClick against recorded answers of the public code, at sizes that it fails on, and as it is trained."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import GOLDEN, drawn_weights
from torch import Tensor, nn

from hrseg_cli.checkpoints.formats import read_backbone, read_checkpoint
from hrseg_cli.engine.cost import gmac
from hrseg_cli.errors import HrsegError
from hrseg_cli.models import simpleclick
from hrseg_cli.models.clicknet import clicknet_s
from hrseg_cli.models.parts.meta import shapes_only
from hrseg_cli.models.parts.vit import Attention, Block, positions, whole_grid, windows_of
from hrseg_cli.models.simpleclick.network import SimpleClick
from hrseg_cli.recipe import load_protocol, recipe_of
from hrseg_cli.training import fit
from hrseg_cli.training.step import make_optimizer

KEYS = json.loads(gzip.decompress((GOLDEN / "simpleclick_keys.json.gz").read_bytes()))
RECORDED = np.load(GOLDEN / "simpleclick.npz")
SMALL: dict[str, Any] = {
    "width": 16, "depth": 4, "heads": 2, "size": [64, 64], "levels": [4, 8, 8, 8], "channels": 8
}  # fmt: skip


def recorded(build: Callable[[], SimpleClick]) -> SimpleClick:
    model = build()
    model.load_state_dict(drawn_weights(model.state_dict()))
    return model.eval()


def noise(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.random(shape).astype(np.float32))


def close(found: Tensor, name: str) -> None:
    np.testing.assert_allclose(found, RECORDED[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", ["simpleclick_xtiny", "simpleclick_b"])
def test_layout_is_the_public_one(size: str) -> None:
    with shapes_only():
        state = {"simpleclick_xtiny": simpleclick.xtiny, "simpleclick_b": simpleclick.base}[size]().state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == dict(KEYS[size])


@pytest.mark.slow
def test_published_sizes() -> None:
    """Parameters of ViT-L and ViT-H, and multiplications of ViT-B, as in the public code; without memory."""
    with shapes_only():
        assert gmac(simpleclick.base(), (448, 448)) == pytest.approx(80.76, abs=0.01)
        counts = [sum(map(Tensor.numel, build().parameters())) for build in (simpleclick.large, simpleclick.huge)]
    assert counts == [324_206_377, 662_184_793]


@torch.inference_mode()
def test_recorded_answer() -> None:
    model, rng = recorded(simpleclick.xtiny), np.random.default_rng(6002)
    answer = model(noise(rng, 1, 4, 448, 448), torch.from_numpy(RECORDED["xtiny_points"]))["logits"]
    close(answer[..., ::16, ::16], "out448")


@pytest.mark.slow
@torch.inference_mode()
def test_recorded_answers_of_other_sizes() -> None:
    """xtiny at another grid, with resized positions; ViT-B stage by stage."""
    model, rng = recorded(simpleclick.xtiny), np.random.default_rng(6002)
    rng.random((1, 4, 448, 448))
    close(
        model(noise(rng, 1, 4, 672, 672), torch.from_numpy(RECORDED["xtiny_points"]))["logits"][..., ::24, ::24],
        "out672",
    )
    model, rng = recorded(simpleclick.base), np.random.default_rng(6001)
    image, previous = noise(rng, 1, 3, 448, 448), noise(rng, 1, 1, 448, 448)
    points = torch.from_numpy(RECORDED["b_points"])
    close(torch.cat([previous, model.click_maps(points, 448, 448)], 1).sum((2, 3)), "coord_sum")
    tokens = model.attend(model.embed(model.encode(image), previous, points))
    close(tokens.flatten(1, 2)[:, ::13, ::16][:, ::3, ::2], "backbone")
    maps = model.neck(tokens.permute(0, 3, 1, 2))
    close(maps[0][:, ::16, ::8, ::8][..., ::2, ::2], "neck4")
    close(maps[3][:, ::64][:, ::2, ::2, ::2], "neck32")
    close(model.head(maps)[..., ::4, ::4], "head")
    answer = model.answer(tokens, 448, 448)["logits"]
    close(answer[..., ::14, ::14], "out")
    assert float(answer.mean()) == pytest.approx(-0.156086728, abs=1e-6)


# ---- any size --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(28, 28), (29, 15), (13, 3), (41, 20), (281, 2)])
def test_windows_hold_each_token_once(height: int, width: int) -> None:
    windows = windows_of(height, width, 14)
    x = torch.arange(2.0 * height * width).view(2, height, width, 1)
    parts, inside = windows.split(x), windows.inside(2, x.device)
    assert torch.equal(windows.join(parts, 2), x)
    if inside is None:
        assert height * width == windows.rows * windows.down * windows.cols * windows.across
    else:
        assert int(inside.sum()) == 2 * height * width
        assert bool(inside.any(-1).all())  # a window of padding alone would give NaN
    assert (windows.rows, windows.cols) >= (min(height, 14), min(width, 14))


@torch.inference_mode()
def test_padding_of_windows_changes_nothing() -> None:
    """At a grid that the public code cannot cut, each window is what attention within its tokens alone gives."""
    torch.manual_seed(0)
    attention, x = Attention(8, 2), torch.randn(2, 29, 17, 8)
    found = attention(x, windows_of(29, 17, 14))
    for rows in (slice(0, 15), slice(15, 29)):
        part = x[:, rows]
        alone = attention(part, whole_grid(part.shape[1], 17))
        torch.testing.assert_close(found[:, rows], alone)


@torch.inference_mode()
def test_what_is_encoded_once_does_not_depend_on_clicks() -> None:
    """Features of an image serve all of its prompts; the clicks come in before the first block."""
    torch.manual_seed(0)
    model = SimpleClick(**SMALL).eval()
    image, previous = torch.rand(1, 3, 50, 70), torch.rand(1, 1, 50, 70)
    points = torch.tensor([[[20.0, 30, 0], [-1, -1, -1]]])
    features = model.encode(image)
    assert [tuple(part.shape) for part in features] == [(1, 4, 5, 16)]
    once = model.decode(features, previous, points)["logits"]
    assert torch.equal(once, model(torch.cat([image, previous], 1), points)["logits"])
    assert not torch.equal(model.embed(features, previous, points), model.embed(features, previous * 0, points))


def test_protocol() -> None:
    protocol = load_protocol("simpleclick")
    assert protocol.zoom is not None
    assert (protocol.zoom.target, protocol.zoom.skip_clicks, protocol.flip) == ((448, 448), -1, True)
    davis = load_protocol("simpleclick", ["zoom.target=[672,672]"])
    assert davis.zoom is not None
    assert davis.zoom.target == (672, 672)


# ---- files -----------------------------------------------------------------------------------------------------------


def public(model: SimpleClick, **changes: Any) -> dict[str, Any]:
    """A checkpoint as the public code saves it: dictionaries of parameters, one of them with a loss in it."""
    config, params = model.config, {}
    size = (config["patch"],) * 2
    params["backbone_params"] = {
        "img_size": tuple(config["size"]), "patch_size": size, "in_chans": 3, "embed_dim": config["width"],
        "depth": config["depth"], "num_heads": config["heads"], "mlp_ratio": 4, "qkv_bias": True,
    }  # fmt: skip
    params["neck_params"] = {"in_dim": config["width"], "out_dims": config["levels"]}
    params["head_params"] = {
        "in_channels": config["levels"], "in_index": [0, 1, 2, 3], "dropout_ratio": 0.1, "num_classes": 1,
        "loss_decode": a_loss(), "align_corners": False, "upsample": "x1", "channels": config["channels"],
    }  # fmt: skip
    params |= {"random_split": False, "use_disks": True, "norm_radius": 5, "with_prev_mask": True, **changes}
    entries = {name: {"type": "builtin", "value": value, "specified": True} for name, value in params.items()}
    config = {"class": "isegm.model.is_plainvit_model.PlainVitModel", "params": entries}
    return {"state_dict": model.state_dict(), "config": config}


def a_loss() -> Any:
    """An object like those in the files: of a class, and with a function, of the public code."""
    module = sys.modules["isegm.model.modeling.transformer_helper.cross_entropy_loss"]
    loss = module.CrossEntropyLoss()
    loss.cls_criterion = module.cross_entropy
    return loss


@pytest.fixture
def isegm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough of the public code's names to pickle such an object."""
    names = ["isegm", "model", "modeling", "transformer_helper", "cross_entropy_loss"]
    for count in range(1, len(names) + 1):
        monkeypatch.setitem(sys.modules, ".".join(names[:count]), types.ModuleType(".".join(names[:count])))
    module: Any = sys.modules[".".join(names)]
    module.CrossEntropyLoss = type("CrossEntropyLoss", (nn.Module,), {"__module__": module.__name__})

    def cross_entropy() -> None: ...

    cross_entropy.__module__, cross_entropy.__qualname__ = module.__name__, "cross_entropy"
    module.cross_entropy = cross_entropy


@pytest.mark.usefixtures("isegm")
def test_public_files_load_strictly(tmp_path: Path) -> None:
    """Without the public code, and without running any of theirs."""
    torch.manual_seed(0)
    model = SimpleClick(**SMALL)
    torch.save(public(model), tmp_path / "vit.pth")
    read, provenance = read_checkpoint(tmp_path / "vit.pth")
    assert (read.config, provenance["from"]) == (model.config, "simpleclick checkpoint")
    assert all(torch.equal(value, read.state_dict()[key]) for key, value in model.state_dict().items())
    less = public(model)
    less["state_dict"].pop("neck.down_4.0.bias")
    torch.save(less, tmp_path / "less.pth")
    with pytest.raises(HrsegError, match=r"1 missing, 0 unexpected \(missing neck.down_4.0.bias\)"):
        read_checkpoint(tmp_path / "less.pth")


@pytest.mark.usefixtures("isegm")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"use_disks": False}, "sets 'use_disks' to False"),
        ({"with_prev_mask": False}, "sets 'with_prev_mask' to False"),
        ({"neck_params": {}}, "'config' is not SimpleClick's"),
        ({"backbone_params": {"patch_size": (16, 8)}}, "patches are not square"),
        ({"backbone_params": {"mlp_ratio": 3}}, "sets 'backbone.mlp_ratio' to 3"),
        ({"norm_radius": "wide"}, "cannot be built"),
    ],
)
def test_files_that_are_no_such_model(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    torch.save(public(SimpleClick(**SMALL), **changes), tmp_path / "vit.pth")
    with pytest.raises(HrsegError, match=rf"vit.pth: .*{told}"):
        read_checkpoint(tmp_path / "vit.pth")


def test_other_objects_in_a_file_are_still_refused(tmp_path: Path) -> None:
    content = {"state_dict": {}, "config": {"class": "x", "params": {"loss": np.random.default_rng}}}
    torch.save(content, tmp_path / "bad.pth", pickle_module=pickle)
    with pytest.raises(HrsegError, match="contains more than tensors"):
        read_checkpoint(tmp_path / "bad.pth")


def test_bare_weights_are_recognised(tmp_path: Path) -> None:
    torch.save(SimpleClick(**SMALL).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(HrsegError, match="SimpleClick weights without their 'config'"):
        read_checkpoint(tmp_path / "bare.pth")


# ---- training --------------------------------------------------------------------------------------------------------


def mae(side: int) -> dict[str, Tensor]:
    """Weights in MAE's layout, for ``side`` x ``side`` patches: an encoder's, with a class token and a last norm."""
    torch.manual_seed(1)
    state = {
        name: torch.rand_like(value)
        for name, value in SimpleClick(**SMALL).backbone.state_dict().items()
        if not name.startswith(("fc_norm.", "head."))
    }
    state["pos_embed"] = torch.rand(1, side * side + 1, 16)
    return {**state, "norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}


def test_mae_weights_are_loaded_with_resized_positions(tmp_path: Path) -> None:
    state = mae(7)
    torch.save({"model": state}, tmp_path / "mae.pth")
    model = SimpleClick(**SMALL)
    assert model.initialise(read_backbone(str(tmp_path / "mae.pth")), 0.8) == 1.0
    assert torch.equal(model.state_dict()["backbone.blocks.3.mlp.fc1.weight"], state["blocks.3.mlp.fc1.weight"])
    wanted = positions(state["pos_embed"][:, 1:], (7, 7), 4, 4).flatten(1, 2)
    assert torch.equal(model.backbone.pos_embed[:, 1:], wanted)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: {k: v for k, v in state.items() if "blocks" not in k}, "covers .*blocks.0.norm1.weight is"),
        (
            lambda state: {f"image_encoder.{k}": v for k, v in state.items()},
            "^a Segment Anything model, which covers 0%",
        ),
        (
            lambda state: {f"vision_encoder.{k}": v for k, v in state.items()},
            "^a Segment Anything model, which covers 0%",
        ),
    ],
)
def test_weights_of_something_else_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], told: str
) -> None:
    model = SimpleClick(**SMALL)
    before = model.backbone.patch_embed.proj.weight.clone()
    with pytest.raises(HrsegError, match=told):
        model.initialise(change(mae(7)), 0.8)
    assert torch.equal(model.backbone.patch_embed.proj.weight, before)


def test_drop_path_leaves_out_whole_branches_in_training_only() -> None:
    torch.manual_seed(0)
    block, x = Block(8, 2, drop=0.5), torch.randn(64, 2, 2, 8)
    grid = whole_grid(2, 2)
    with torch.no_grad():
        dropped = (block(x, grid) == x).flatten(1).all(1)
        assert 0.1 < float(dropped.float().mean()) < 0.45  # both branches of a sample: a quarter
        block.eval()
        plain = block(x, grid)
        assert torch.equal(plain, block(x, grid))
        assert not (plain == x).flatten(1).all(1).any()
    model = SimpleClick(**SMALL, drop_path=0.3)
    assert [block.drop for block in model.backbone.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])  # type: ignore[union-attr]


def test_learning_rates_decay_from_layer_to_layer() -> None:
    model = SimpleClick(**SMALL)
    optim = {"lr": 1.0, "layer_decay": 0.5, "backbone": 1.0, "heads": 1.0}
    recipe = recipe_of({"name": "x", "data": {"parts": [{"dataset": "x"}]}, "optim": optim}, "test")
    rates = {
        id(parameter): group["lr"]
        for group in make_optimizer(model, recipe.optim).param_groups
        for parameter in group["params"]
    }
    named = {name: rates.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert named["neck.down_4.0.weight"] == named["head.conv_seg.weight"] == named["patch_embed_coords.proj.bias"] == 1
    assert named["backbone.blocks.3.attn.qkv.weight"] == 0.5
    assert named["backbone.blocks.0.norm1.bias"] == 0.5**4
    assert named["backbone.pos_embed"] == named["backbone.patch_embed.proj.weight"] == 0.5**5
    assert named["backbone.head.weight"] is None
    with pytest.raises(HrsegError, match=r"optim.layer_decay: .* has no sequence of pretrained layers; set it to 1"):
        fit.check_recipe(clicknet_s(), recipe)
