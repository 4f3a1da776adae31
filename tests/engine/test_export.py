"""Exported click steps and graph runtimes compared with PyTorch, on deterministic weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from reference import case, deterministic_weights
from torch import Tensor

from hrseg_cli.adapters.lora import attach_lora
from hrseg_cli.adapters.resample import Resampled
from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.data.paths import cache_folder
from hrseg_cli.engine.export import ClickStep, check, clicks_of, export, points_of, read_header, write_graph
from hrseg_cli.engine.runtimes import GRAPHS, open_model
from hrseg_cli.engine.session import Session
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.grabcut import GrabCut
from hrseg_cli.models.hrnet import h18s
from hrseg_cli.models.parts import click_maps
from hrseg_cli.recipe import load_protocol


def trained() -> InteractiveModel:
    model = h18s()
    model.load_state_dict(deterministic_weights(model.state_dict()))
    with torch.no_grad():  # else the untrained answers cover nothing
        model.feature_extractor.cls_head.bias += 0.5
    return model.eval()


def adapted(attach: Callable[..., Any], **options: Any) -> InteractiveModel:
    """With noise in all zero-initialised weights; otherwise the adapter would have no effect."""
    model: InteractiveModel = attach(trained(), **options)
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=random))
    return model.eval()


MODELS: dict[str, Callable[[], InteractiveModel]] = {
    "base": trained,
    "conv": lambda: adapted(Resampled, design="b_lite"),
    "lora": lambda: adapted(attach_lora),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[InteractiveModel, Path]]:
    """Name of :data:`MODELS` -> the model and its exported file, created once."""
    made: dict[str, tuple[InteractiveModel, Path]] = {}

    def of(name: str) -> tuple[InteractiveModel, Path]:
        if name not in made:
            model, path = MODELS[name](), tmp_path_factory.mktemp("graphs") / f"{name}.onnx"
            export(model, path, {"file": f"{name}.safetensors"})
            made[name] = model, path
        return made[name]

    return of


# LoRA is folded into the base's layers, so that its graph is the base's with other numbers.
@pytest.mark.parametrize("name", [*(n for n in MODELS if n != "lora"), pytest.param("lora", marks=pytest.mark.slow)])
def test_every_runtime_answers_as_pytorch(name: str, files: Any) -> None:
    """With a size and number of clicks not used in the export; the caller's model is not modified."""
    model, path = files(name)
    header, _ = read_header(path)
    assert [row["batch_height_width_clicks"][1:3] for row in header["checked"]] == [[96, 128], [101, 75], [64, 160]]
    random = torch.Generator().manual_seed(1)
    image = torch.rand(1, 4, 67, 84, generator=random)
    points = torch.tensor(
        [[[30.0, 40.0, 0], [12.25, 70.5, 1], [-1, -1, -1], [66.0, 0.0, 2], [-1, -1, -1], [-1, -1, -1]]]
    )
    with torch.inference_mode():
        wanted = model(image, points.double())["logits"]
        for runtime in ("onnxruntime", "openvino"):
            graph, _ = open_model(str(path), runtime)
            torch.testing.assert_close(graph(image, points.double())["logits"], wanted, atol=1e-4, rtol=0)
    assert (graph.enlarge, graph.mirror, graph.with_prev_mask) == (model.enlarge, model.mirror, model.with_prev_mask)


def test_the_file_says_how_it_is_called(files: Any) -> None:
    """Users without Python have only this file."""
    graph = onnx.load(files("base")[1])
    onnx.checker.check_model(graph)
    shapes = {
        entry.name: [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim]
        for entry in (*graph.graph.input, *graph.graph.output)
    }
    plane = ["batch", 1, "height", "width"]
    assert shapes == {
        "image": ["batch", 3, "height", "width"],
        "previous": plane,
        "clicks": ["batch", "clicks", 3],
        "probability": plane,
        "logits": plane,
    }
    assert all(name in graph.doc_string for name in shapes)
    assert graph.opset_import[0].version == read_header(files("base")[1])[0]["opset"]


def test_normalisations_are_folded(files: Any) -> None:
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(files("base")[1]).graph.node}


def test_clicks_with_labels_are_the_networks_points() -> None:
    points = torch.tensor([[[3.0, 4.5], [-1, -1], [7.25, 0.0], [-1, -1]]])
    points = torch.cat([points, torch.zeros(1, 4, 1)], 2)
    clicks = clicks_of(points)
    assert clicks[0, :, 2].tolist() == [1, -1, 0, -1]
    again = points_of(clicks)
    assert click_maps.valid_slots(again).sum() == 2
    for size in ((9, 9), (3, 20)):
        assert torch.equal(click_maps.disk_maps(again, *size, 5), click_maps.disk_maps(points, *size, 5))


@pytest.mark.parametrize("seed", range(5))
def test_a_graph_draws_clicks_to_the_pixel(seed: int) -> None:
    """Click maps in a graph use other formulas, because the number of clicks is dynamic."""
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(2, 8, 3, generator=random) * torch.tensor([60.0, 90.0, 1.0]) - 8
    points[:, 1::3] = points[:, 1::3].round()  # whole coordinates meet the radius exactly
    points[0, :3] = -1
    disks = click_maps._disk_maps_for_export(points, 47, 71, 5)
    assert torch.equal(disks, click_maps.disk_maps(points, 47, 71, 5))
    distances = click_maps._distance_maps_for_export(points, 47, 71, 5)
    torch.testing.assert_close(distances, click_maps.distance_maps(points, 47, 71, 5), atol=1e-6, rtol=0)


def test_a_graph_of_other_weights_is_refused(files: Any) -> None:
    """The check can fail."""
    model, path = files("base")
    other = copy.deepcopy(model)
    other.feature_extractor.cls_head.bias.data += 0.01
    with pytest.raises(HrsegError, match="differ from PyTorch by"):
        check(path.read_bytes(), ClickStep(other))


@pytest.mark.parametrize("change", [{"enlarge": 10**6}, {"enlarge": 1.5}, {"mirror": "no"}, {"options": None}])
def test_a_header_that_was_edited_is_refused(change: dict[str, Any], files: Any, tmp_path: Path) -> None:
    """Crops are larger by its factor ``enlarge``."""
    path = files("base")[1]
    header, _ = read_header(path)
    write_graph(onnx.load_model(path), header | change, tmp_path / "a.onnx")
    with pytest.raises(HrsegError, match=r"a\.onnx: was not written by 'hrseg export'"):
        read_header(tmp_path / "a.onnx")


def test_what_has_no_network_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(HrsegError, match="no network"):
        export(GrabCut(), tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())


class Unsupported(InteractiveModel):
    """A network whose last step ONNX has no operator for, or none for sizes that change."""

    name = "odd"
    config: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, odd: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.odd = torch.nn.Conv2d(4, 1, 3, padding=1), odd

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        return {"logits": self.odd(self.layer(image)) + points.sum()}


def smoothed(x: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (torch.special.i0e, "cannot be exported, ONNX opset 17 does not support its operator aten::special_i0e"),
        (smoothed, "does not support its operator aten::_upsample_bilinear2d_aa"),
        (lambda x: x[..., : int(x.shape[-1])], r"returns shape \(1, 1, 64, 128\).*\(1, 1, 64, 160\)"),
        (lambda x: x.view(x.shape[0], 1, -1, int(x.shape[-1])), r"does not run on 2 images of 101x75 .*Reshape"),
    ],
    ids=["operator", "option", "size", "shape"],
)
def test_what_onnx_cannot_express_is_one_line(
    odd: Any, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exporter's own message holds the whole graph, and it prints that too."""
    with pytest.raises(HrsegError, match=told) as error:
        export(Unsupported(odd).eval(), tmp_path / "x.onnx", {})
    line = str(error.value)
    assert line.startswith("odd: ")
    assert len(line.splitlines()) == 1
    assert len(line) < 300
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_session_is_the_same_on_every_runtime(
    runtime: str, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint, exported automatically; crops of several sizes, with undo and redo."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint = tmp_path / "h18s.safetensors"
    save_checkpoint(files("base")[0], checkpoint, {})
    image, _ = case(8)
    protocol = load_protocol("ritm", ["zoom.target=128", "zoom.min_crop=60"])
    masks = {}
    for name in ("torch", runtime):
        model, provenance = open_model(str(checkpoint), name)
        assert provenance.get("runtime", {"name": "torch"})["name"] == name
        session = Session(model, image, protocol)
        clicks = [Click(150, 150, True), Click(100, 40, True), Click(40, 160, False), Click(20.5, 50, True)]
        masks[name] = [session.click(click) for click in clicks]
        box = session.state.box
        assert session.undo()
        assert session.redo()
        assert session.state.box == box
    for one, other in zip(*masks.values(), strict=True):
        assert 0.001 < one.mean() < 0.999
        assert (one != other).mean() < 1e-4  # a pixel may sit on the threshold
    kept = list(cache_folder().iterdir())
    assert len(kept) == 1
    before = kept[0].stat().st_mtime_ns
    open_model(str(checkpoint), runtime)
    assert kept[0].stat().st_mtime_ns == before


def test_what_is_wrong_is_one_line(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = files("base")[1]
    text, foreign, newer = tmp_path / "text.onnx", tmp_path / "foreign.onnx", tmp_path / "newer.onnx"
    text.write_text("not a graph")
    loaded = onnx.load(graph)
    header = json.loads(loaded.metadata_props[0].value)
    loaded.metadata_props[0].value = json.dumps({**header, "format": 99})
    onnx.save(loaded, newer)
    del loaded.metadata_props[:]
    onnx.save(loaded, foreign)
    for spec, runtime, device, message in [
        (str(text), None, "cpu", "not an ONNX file"),
        (str(foreign), None, "cpu", "not written by"),
        (str(newer), None, "cpu", "newer hrseg"),
        (str(tmp_path / "absent.onnx"), None, "cpu", "no such file"),
        (str(graph), "torch", "cpu", "cannot run the ONNX file"),
        (str(graph), "openvino", "cuda", "runs on the CPU only"),
    ]:
        with pytest.raises(HrsegError, match=message) as error:
            open_model(spec, runtime, device)
        assert "\n" not in str(error.value)
    with pytest.raises(UnknownName, match="Did you mean 'onnxruntime'"):
        open_model(str(graph), "onnxrt")
    for package in {package for _, package, _ in GRAPHS.values()}:
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(HrsegError, match=f"run: pip install .*{package}"):
            open_model(str(graph), next(name for name, entry in GRAPHS.items() if entry[1] == package))
