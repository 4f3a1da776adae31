"""What Segment Anything models share: their square, their prompts, the choice among masks, and how they are named. The
networks are transformers' own; test_sam_networks.py compares with them."""

from __future__ import annotations

import builtins
import importlib
import json
from pathlib import Path
from typing import Any

import contract
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.engine.export import export
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.engine.session import Session
from hrseg_cli.engine.views import ViewCache
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Box, Click
from hrseg_cli.models.base import Features
from hrseg_cli.models.sam import frame as frames
from hrseg_cli.models.sam.frame import Frame
from hrseg_cli.models.sam.network import Prompt, SegmentAnything
from hrseg_cli.recipe import load_protocol


class Small(SegmentAnything):
    """Three masks, which grow with the image's brightness around the last click; the second is said to be the best."""

    def __init__(self, choose: str = "iou", stretched: bool = False, reach: float = 12) -> None:
        super().__init__("small", Frame(64, stretched), 16, choose)
        self.encoded, self.reach = 0, reach

    def embed(self, pixels: Tensor) -> Features:
        self.encoded += len(pixels)
        return (torch.nn.functional.avg_pool2d(pixels, 4),)

    def masks(self, features: Features, prompt: Prompt, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rows, cols = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        found = features[0].mean(1, keepdim=True) * 0.1
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            near = self.reach - ((rows - y / 4).square() + (cols - x / 4).square()).sqrt()
            found = torch.maximum(found, near) if label else torch.minimum(found, -near)
        if prompt.box is not None:
            left, top, right, bottom = prompt.box / 4
            found = found + 2 * ((rows >= top) & (rows <= bottom) & (cols >= left) & (cols <= right))
        if prompt.mask is not None:
            found = found + 0.01 * prompt.mask
        if self.choose == "single":
            return found, torch.ones(1)
        return torch.cat([found - 2, found, found + 2], 1), torch.tensor([0.5, 0.9, 0.7])


@pytest.mark.parametrize("stretched", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (33, 47), (9, 7), (1, 20)])
def test_it_keeps_the_contract_at_any_size(stretched: bool, size: tuple[int, int]) -> None:
    contract.test_answers_at_any_size(Small(stretched=stretched), size)


def test_it_is_never_trained_or_exported(tmp_path: Path) -> None:
    model = Small()
    model.layer = torch.nn.Linear(2, 2)
    assert model.untrained() == set(model.parameters())
    with pytest.raises(HrsegError, match="cannot be exported as one graph"):
        export(model, tmp_path / "a.onnx", {})


@pytest.mark.parametrize("stretched", [False, True])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 120), (100, 31), (1, 90), (7, 5)])
def test_a_mask_survives_the_square(height: int, width: int, stretched: bool) -> None:
    """What is put into the square comes back from it at the same place, up to the size of a cell."""
    frame = Frame(64, stretched)
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 4 : height // 4 + (height + 1) // 2, width // 4 :] = 1
    taken = frames.mask_input(mask, frame, 64)
    assert taken is not None
    assert taken.shape == (1, 1, 64, 64)
    back = frames.full_size(taken, (height, width), frame) > 0
    if min(frame.inner(height, width)) >= 8:
        assert float((back == (mask > 0)).float().mean()) > 0.75
    if not stretched:
        inner = frame.inner(height, width)
        assert bool((taken[..., inner[0] + 1 :, :] < 0).all())
        assert bool((taken[..., :, inner[1] + 1 :] < 0).all())
    assert frames.mask_input(torch.zeros(1, 1, height, width), frame, 64) is None


def test_a_probability_comes_back_as_the_logit_it_was() -> None:
    """From click to click, masks stay what the network said, where it was not beyond single precision."""
    frame = Frame(64)
    logits = torch.linspace(-12, 12, 256).view(1, 1, 16, 16)
    shown = torch.sigmoid(frames.full_size(logits, (64, 64), frame))
    taken = frames.mask_input(shown, frame, 16)
    assert taken is not None
    torch.testing.assert_close(taken[..., 1:-1, 1:-1], logits[..., 1:-1, 1:-1], atol=0.3, rtol=0)


def test_prompts_are_in_pixels_of_the_square() -> None:
    """In the order of the clicks, x before y. What lies outside the view is left out; a box is cut off there."""
    model = Small()
    points = torch.tensor([[[10.0, 40, 2], [3, 5, 0], [-1, -1, -1], [7, 6, 1], [-4, 5, 3], [90, 5, 4]]]).double()
    box = torch.tensor([-5.0, 8, 200, 30])
    prompt = model.prompt(torch.zeros(1, 1, 32, 128), points, box)
    assert prompt.points.tolist() == [[2.5, 1.5], [3.0, 3.5], [20.0, 5.0]]
    assert prompt.labels.tolist() == [1, 0, 1]
    assert prompt.box is not None
    assert prompt.box.tolist() == [4.0, 0.0, 15.0, 15.5]
    assert prompt.mask is None
    tall = Small(stretched=True).prompt(torch.zeros(1, 1, 32, 128), points, torch.full((4,), -1.0))
    assert tall.points.tolist() == [[2.5, 6.0], [3.0, 14.0], [20.0, 20.0]]
    assert tall.box is None
    assert model.prompt(torch.zeros(1, 1, 32, 128), points, torch.tensor([40.0, 8, 50, 30])).box is None


@torch.inference_mode()
def test_which_mask_is_the_answer() -> None:
    """The best by predicted IoU; or the one most like the previous answer, if there is one; or the only one."""
    points = torch.tensor([[[32.0, 32, 0], [-1, -1, -1]]]).double()
    image, nothing = torch.full((1, 3, 64, 64), 0.1), torch.zeros(1, 1, 64, 64)

    def size(choose: str, previous: Tensor) -> int:
        model = Small(choose, reach=4)
        return int((model.decode(model.encode(image), previous, points)["logits"] > 0).sum())

    small, large = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    small[..., 28:36, 28:36], large[..., 4:60, 4:60] = 1, 1
    assert size("iou", nothing) == size("previous", nothing) == size("single", nothing) > 0
    assert size("previous", small) < size("iou", small)
    assert size("previous", large) > size("iou", large)


@torch.inference_mode()
def test_boxes_of_a_batch_are_apart() -> None:
    model = Small()
    image, points = contract.question(model, 48, 64, 2)
    features = model.encode(image[:, :3])
    found = model.decode(features, image[:, 3:], points, torch.tensor([[8.0, 10, 30, 50], [-1, -1, -1, -1]]))["logits"]
    plain = model.decode(features, image[:, 3:], points)["logits"]
    assert not torch.allclose(found[0], plain[0])
    assert torch.equal(found[1], plain[1])


def test_an_image_is_encoded_once_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the protocol sam, and once a crop by one that zooms in; the pixels of a large image are not kept twice."""
    monkeypatch.setattr(ViewCache, "MAX_PIXELS", 1000)
    image = np.zeros((160, 150, 3), np.uint8)
    image[30:50, 20:50] = 200
    model = Small(reach=2)
    session = Session(model, image, load_protocol("sam"))
    for click in (Click(40, 30, True), Click(1, 1, False), Click(35, 40, True)):
        session.click(click)
    session.box(Box(29, 51, 19, 51))
    assert model.encoded == 1
    session.begin()
    session.click(Click(40, 30, True))
    assert model.encoded == 1
    zooming = Session(model, image, load_protocol("sam_zoom", ["zoom.target=64", "zoom.min_crop=20"]))
    zooming.click(Click(40, 30, True))
    zooming.click(Click(41, 31, True))
    assert model.encoded == 3  # the whole image, then a crop of the object twice


# Names


def refused(spec: str) -> str:
    with pytest.raises(HrsegError) as caught:
        open_model(spec)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert len(line) < 400
    return line


def test_without_transformers_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    find = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return find(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    for spec in (f"sam:{tmp_path}", "sam:facebook/sam-vit-base"):
        assert "transformers is not installed; run: pip install 'hrseg[sam]'" in refused(spec)


def test_names_that_open_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them asks the network, or imports the library."""
    monkeypatch.chdir(tmp_path)

    def never(name: str, *rest: Any, **more: Any) -> Any:
        assert not name.startswith(("transformers", "huggingface_hub"))
        return imported(name, *rest, **more)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", never)
    for spec in ("sam:", "sam:nothing", "sam:../x", "sam:/etc/nothing", "sam:a/b/c", "sam:./a/b", "sam:a b/c"):
        assert "no such folder" in refused(spec)
    (tmp_path / "sam_vit_b.pth").write_bytes(b"x")
    assert "sam_vit_b.pth: a file, not a folder; give a folder" in refused("sam:sam_vit_b.pth")
    assert "give two ONNX files" in refused("sam:a.onnx")
    with pytest.raises(UnknownName, match="Did you mean 'previous'"):
        load_model("sam:a/b,choose=previos")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json cannot be read" in refused("sam:empty")
    for config in ("[]", "{}", "{", '{"model_type": 3}', '{"model_type": "bert"}', '{"model_type": ["sam"]}'):
        (empty / "config.json").write_text(config)
        assert "empty: " in refused("sam:empty")
    for config in ({"vision_config": {"num_hidden_layers": 10**7}}, {"mask_decoder_config": {"mlp_dim": 10**9}}):
        (empty / "config.json").write_text(json.dumps({"model_type": "sam", **config}))
        assert "at most" in refused("sam:empty")
    timm = {"model_type": "sam2", "vision_config": {"backbone_config": {"model_type": "timm_wrapper"}}}
    (empty / "config.json").write_text(json.dumps(timm))
    assert "timm_wrapper" in refused("sam:empty")


def test_its_files_under_another_name_are_recognised(tmp_path: Path) -> None:
    """A checkpoint of Segment Anything given as one of hrseg's says how it is given."""
    save_file({"mask_decoder.iou_token.weight": torch.zeros(1, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    torch.save({"image_encoder.pos_embed": torch.zeros(1)}, tmp_path / "sam_vit_b.pth")
    assert f"give sam:{tmp_path}" in refused(str(tmp_path))
    for file in ("model.safetensors", "sam_vit_b.pth"):
        assert "as sam:FOLDER" in refused(str(tmp_path / file))
