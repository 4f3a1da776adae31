"""Segment Anything networks of transformers, small and random.

hrseg answers as the library's own processor and model do, whole commands run on them, and damaged folders are refused.
Importing the library takes seconds, so all of it is slow.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from tiny_photos import boxes as photographs
from tiny_photos import folder_of
from torch import Tensor

from hrseg_cli.annotate.desk import Desk
from hrseg_cli.annotate.folder import Folder
from hrseg_cli.annotate.server import application
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.sam import frame as frames
from hrseg_cli.models.sam.hugging import FAMILIES, HuggingFaceModel
from hrseg_cli.models.sam.pairs import INPUTS
from hrseg_cli.recipe import load_protocol

pytestmark = [
    pytest.mark.slow,
    # The library's own, of other libraries.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'hrseg[sam]'")

KINDS = ["sam", "sam_hq", "sam2"]
POINTS = [[20.0, 10.0], [50.0, 30.5], [61.0, 2.0]]  # x, y
LABELS = [1, 0, 1]
BOX = [15.0, 4.0, 55.0, 33.0]


def network(kind: str) -> Any:
    """Random weights, large enough for an answer that depends on everything."""
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    if kind == "sam2":
        backbone = {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [64, 64],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "blocks_per_stage": [1, 1, 2, 1],
            "window_size_per_stage": [4] * 4,
            "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [4, 4],
        }
        vision = {
            "backbone_config": backbone,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 16,
        }
        prompts["patch_size"] = 16
    else:
        vision = {
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,  # half of hidden_size
            "mlp_dim": 32,
        }
        if kind == "sam_hq":
            decoder["vit_dim"] = 16
    model_class, config_class = (getattr(transformers, name) for name in FAMILIES[kind])
    torch.manual_seed(0)
    made = model_class(
        config_class(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    ).eval()
    with torch.no_grad():
        for one in made.parameters():
            one.normal_(std=0.4)
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sam")
    for kind in KINDS:
        network(kind).save_pretrained(place / kind)
    return {kind: place / kind for kind in KINDS}


def opened(folder: Path, choose: str = "") -> HuggingFaceModel:
    model, _ = load_model(f"sam:{folder}{choose}")
    assert isinstance(model, HuggingFaceModel)
    return model


def test_the_constants_are_the_librarys(folders: dict[str, Path]) -> None:
    sam = transformers.SamConfig()
    assert frames.Frame() == frames.Frame(
        sam.vision_config.image_size,
        False,
        tuple(transformers.SamImageProcessorPil.image_mean),
        tuple(transformers.SamImageProcessorPil.image_std),
    )
    sam2 = transformers.Sam2Config()
    assert (sam2.prompt_encoder_config.image_size, sam2.prompt_encoder_config.patch_size) == (1024, 16)
    for kind, folder in folders.items():
        model = opened(folder)
        assert (model.frame, model.name) == (frames.Frame(64, kind == "sam2"), kind)
        assert model.mask_side == {"sam": 32, "sam_hq": 32, "sam2": 16}[kind]


def librarys(kind: str, net: Any, image: np.ndarray, previous: Tensor | None, points: bool, box: bool) -> Any:
    """All masks at the size of the image, as logits, and their scores, from the library's processor and model."""
    height, width = image.shape[:2]
    given: dict[str, Any] = {}
    if kind == "sam2":  # its processor needs torchvision; this is what it does, with Pillow's filter
        small = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR), np.float32) / 255
        mean, std = (np.float32(three) for three in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        given["pixel_values"] = torch.from_numpy((small - mean) / std).permute(2, 0, 1)[None]
        scale = torch.tensor([64 / width, 64 / height])
        if points:
            given |= {"input_points": torch.tensor([[POINTS]]) * scale, "input_labels": torch.tensor([[LABELS]])}
        if box:
            given["input_boxes"] = torch.tensor([[BOX]]) * scale.repeat(2)
        sizes: tuple[Any, ...] = ()
    else:
        processor_class = transformers.SamHQProcessor if kind == "sam_hq" else transformers.SamProcessor
        processor = processor_class(
            transformers.SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
        )
        asked: dict[str, Any] = {"input_points": [[POINTS]], "input_labels": [[LABELS]]} if points else {}
        if box:
            asked["input_boxes"] = [[BOX]]
        batch = processor(Image.fromarray(image), return_tensors="pt", **asked)
        sizes = (batch.pop("original_sizes"), batch.pop("reshaped_input_sizes"))
        given = {key: value.float() if value.is_floating_point() else value for key, value in batch.items()}
    if previous is not None:
        given["input_masks"] = previous
    with torch.inference_mode():
        out = net(**given)
        if sizes:
            masks = processor.image_processor.post_process_masks(
                [out.pred_masks[0]], *sizes, binarize=False, pad_size={"height": 64, "width": 64}
            )[0]
        else:
            masks = torch.nn.functional.interpolate(
                out.pred_masks[0], (height, width), mode="bilinear", align_corners=False
            )
    return masks[0], out.iou_scores[0, 0]


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(36, 70), (90, 64), (64, 64)])
def test_it_answers_as_the_librarys_processor_and_model(
    kind: str, size: tuple[int, int], folders: dict[str, Path]
) -> None:
    """With clicks, a box, both, and a previous mask; by predicted IoU and by the previous answer."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    before = torch.zeros(1, 1, *size)
    before[..., 5:30, 10:60] = 0.9
    slots = [
        [[y, x, k] if label else [-1, -1, -1] for k, ((x, y), label) in enumerate(zip(POINTS, LABELS, strict=True))]
    ]
    slots[0] += [
        [-1, -1, -1] if label else [y, x, k] for k, ((x, y), label) in enumerate(zip(POINTS, LABELS, strict=True))
    ]
    clicks = torch.tensor(slots, dtype=torch.float64)
    nothing = torch.full_like(clicks, -1)
    net = network(kind)
    model, likewise = opened(folders[kind]), opened(folders[kind], ",choose=previous")
    features = model.encode(pixels)
    seen = []
    for points, box, previous in ((1, 0, 0), (1, 0, 1), (0, 1, 0), (1, 1, 1)):
        shown = before if previous else torch.zeros_like(before)
        taken = frames.mask_input(shown, model.frame, model.mask_side)
        boxes = torch.tensor([[BOX[1], BOX[0], BOX[3], BOX[2]]]).clamp(max=max(size)) if box else None
        if box and (BOX[3] > size[0] - 1 or BOX[2] > size[1] - 1):
            continue  # cut off by hrseg, not by the library
        masks, scores = librarys(kind, net, image, taken, bool(points), bool(box))
        found = model.decode(features, shown, clicks if points else nothing, boxes)["logits"]
        spread = float(masks.max() - masks.min())
        assert spread > 0.1
        torch.testing.assert_close(found[0, 0], masks[scores.argmax()], atol=1e-4 * max(1, spread), rtol=0)
        alike = likewise.decode(features, shown, clicks if points else nothing, boxes)["logits"][0, 0]
        assert any(torch.allclose(alike, mask, atol=1e-4 * max(1, spread)) for mask in masks)
        seen.append(found)
    assert all(not torch.allclose(one, other) for one, other in pairwise(seen))


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_single_masks(kind: str, folders: dict[str, Path]) -> None:
    """Objects of a batch do not see each other; ``choose=single`` is the library's only mask."""
    images = torch.rand(2, 3, 50, 64, generator=torch.Generator().manual_seed(1))
    points = torch.tensor([[[10.0, 20, 0], [5, 5, 2], [30, 40, 1], [-1, -1, -1]]]).double().repeat(2, 1, 1)
    points[1, 1] = -1
    previous = torch.zeros(2, 1, 50, 64)
    previous[1, :, 10:20, 10:30] = 1
    model = opened(folders[kind], ",choose=single")
    both = model.decode(model.encode(images), previous, points)["logits"]
    for k in range(2):
        alone = model.decode(model.encode(images[k : k + 1]), previous[k : k + 1], points[k : k + 1])["logits"]
        torch.testing.assert_close(both[k : k + 1], alone, atol=1e-4, rtol=1e-4)
    best = opened(folders[kind]).decode(model.encode(images), previous, points)["logits"]
    assert (kind == "sam2") == torch.allclose(both, best)  # SAM 2 takes the best mask where the only one is unstable


def test_commands_click_on_it(hrseg: Callable[..., Any], folders: dict[str, Path], tmp_path: Path) -> None:
    """evaluate with whole images and zoom-in, predict with a box, annotate's server, and what the export says."""
    data = photographs(tmp_path / "data")
    for protocol, change in (("sam", "threshold=0.4"), ("sam_zoom", "zoom.target=64")):
        out = tmp_path / protocol
        words = ["-m", f"sam:{folders['sam']}", "-d", data, "--protocol", protocol, "--set", change, "--out", out]
        done = hrseg("evaluate", *words, "--max-clicks", 2, "--workers", 1)
        assert done.code == 0, done.err
        assert json.loads((out / "run.json").read_text())["asked"]["settings"]["model"]["name"] == "sam"
    words = ["-m", f"sam:{folders['sam2']}", "--box", "10,20,40,50", "--protocol", "sam", "--out", tmp_path / "masks"]
    done = hrseg("predict", data / "images" / "0.png", *words)
    assert done.code == 0, done.err
    assert np.asarray(Image.open(next((tmp_path / "masks").glob("*.png")))).shape == (56, 72)

    loaded, provenance = open_model(f"sam:{folders['sam_hq']}")
    protocol = load_protocol("sam")
    desk = Desk(Folder(folder_of(tmp_path / "shop", "a.png"), protocol.threshold), loaded, provenance, protocol)
    with TestClient(application(desk, "token", ["127.0.0.1:8017"]), "http://127.0.0.1:8017") as client:
        client.headers["authorization"] = "Bearer token"
        revision = client.get("/api/images/0/revision").json()["revision"]
        wish = {"revision": revision, "do": "click", "row": 30, "col": 30, "positive": True}
        answer = client.post("/api/images/0", json=wish)
        assert answer.status_code == 200, answer.text
    done = hrseg("export", f"sam:{folders['sam']}", "--out", tmp_path / "a.onnx")
    assert (done.code, "cannot be exported as one graph" in done.err) == (1, True)


class Encoder(torch.nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.net.vision_encoder(pixels)[0]
        return found


class Decoder(torch.nn.Module):
    """A SAM's decoder with the inputs and outputs of segment-anything's exporter."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, embeddings: Tensor, coords: Tensor, labels: Tensor, mask: Tensor, has: Tensor, size: Tensor
    ) -> Any:
        prompts = self.net.prompt_encoder
        coords, labels = coords[None], labels[None]
        points = prompts.shared_embedding(coords + 0.5, (64, 64))
        points = torch.where(labels[..., None] == -1, prompts.not_a_point_embed.weight, points)
        for kind, embed in enumerate(prompts.point_embed):
            points = points + embed.weight * (labels == kind)[..., None]
        dense = has * prompts.mask_embed(mask) + (1 - has) * prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
        place = self.net.get_image_wide_positional_embeddings()
        found = [self.net.mask_decoder(embeddings, place, points, dense, several) for several in (False, True)]
        masks, scores = (torch.cat(parts, 2)[:, 0] for parts in zip(*found, strict=True))
        whole = torch.nn.functional.interpolate(masks, (64, 64), mode="bilinear", align_corners=False)
        return whole * (size.sum() > 0), scores, masks


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> tuple[Path, Path]:
    """The network "sam" as two ONNX files."""
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'hrseg[export]'")
    place = tmp_path_factory.mktemp("onnx")
    net = network("sam")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about shapes traced as constants
        torch.onnx.export(
            Encoder(net), (torch.rand(1, 3, 64, 64),), place / "encoder.onnx", dynamo=False, opset_version=17
        )
        example = (torch.rand(1, 16, 8, 8), torch.rand(1, 3, 2), torch.tensor([[0.0, 1, 2]]), torch.rand(1, 1, 32, 32))
        torch.onnx.export(
            Decoder(net),
            (*example, torch.ones(1), torch.tensor([48.0, 64])),
            place / "decoder.onnx",
            input_names=list(INPUTS),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "points"}, "point_labels": {1: "points"}},
            dynamo=False,
            opset_version=17,
        )
    return place / "encoder.onnx", place / "decoder.onnx"


@torch.inference_mode()
@pytest.mark.parametrize("choose", ["iou", "previous", "single"])
def test_a_pair_of_onnx_files_answers_as_the_network(
    choose: str, pair: tuple[Path, Path], folders: dict[str, Path], hrseg: Callable[..., Any], tmp_path: Path
) -> None:
    spec = f"sam:{pair[0]},{pair[1]},choose={choose}"
    graph, provenance = open_model(spec)
    assert (provenance["file"], graph.config) == ("encoder.onnx,decoder.onnx", {"choose": choose})
    model = opened(folders["sam"], f",choose={choose}")
    images = torch.rand(2, 3, 40, 70, generator=torch.Generator().manual_seed(1))
    points = torch.tensor([[[10.0, 20, 0], [5, 5, 2], [30, 60, 1], [-1, -1, -1]]]).double().repeat(2, 1, 1)
    points[1, 1] = -1
    previous = torch.zeros(2, 1, 40, 70)
    previous[1, :, 10:20, 10:30] = 0.8
    boxes = torch.tensor([[-1.0, -1, -1, -1], [4, 6, 30, 40]])
    for given in (points, torch.full_like(points, -1)):
        found, wanted = (one.decode(one.encode(images), previous, given, boxes)["logits"] for one in (graph, model))
        spread = float(wanted.max() - wanted.min())
        # Without any prompt the graph sees one point of padding, the network none at all.
        some = slice(None) if given is points else slice(1, 2)
        torch.testing.assert_close(found[some], wanted[some], atol=1e-4 * max(1, spread), rtol=0)
    if choose == "iou":
        words = ["-m", spec, "--click", "20,30", "--protocol", "sam", "--out", tmp_path / "masks"]
        Image.new("RGB", (70, 40), "red").save(tmp_path / "a.png")
        done = hrseg("predict", tmp_path / "a.png", *words)
        assert done.code == 0, done.err


def test_pairs_that_are_none(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a graph")
    encoder, decoder = pair
    for spec, line in {
        f"{decoder},{encoder}": "not a decoder as segment-anything exports it",
        f"{encoder},{encoder}": "not a decoder",
        f"{decoder},{decoder}": "not an image encoder",
        f"{encoder},{tmp_path / 'none.onnx'}": "no such file",
        f"{tmp_path / 'text.onnx'},{decoder}": "not an ONNX file that can be loaded",
    }.items():
        with pytest.raises(HrsegError, match=line) as caught:
            open_model(f"sam:{spec}")
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(HrsegError, match="runs on the CPU"):
        open_model(f"sam:{encoder},{decoder}", device="meta")


def test_damaged_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    """Each is refused in one line, and nothing is unpickled or downloaded."""

    def line(folder: Path) -> str:
        with pytest.raises(HrsegError) as caught:
            load_model(f"sam:{folder}")
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 500
        return str(caught.value)

    folder = tmp_path / "x"

    def fresh() -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folders["sam"], folder)
        return dict(json.loads((folder / "config.json").read_text()))

    config = fresh()
    config["vision_config"]["hidden_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json says" in line(folder) or "missing" in line(folder)
    config = fresh()
    config["vision_config"]["image_size"] = 60_000
    (folder / "config.json").write_text(json.dumps(config))
    assert "cannot be built" in line(folder)
    config = fresh()
    config["vision_config"]["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))
    assert "cannot be built" in line(folder)
    config = fresh()
    config["model_type"] = "sam2"
    (folder / "config.json").write_text(json.dumps(config))
    line(folder)
    fresh()
    tensors = load_file(folder / "model.safetensors")
    name = "mask_decoder.iou_token.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors")
    assert "missing" in line(folder)
    save_file({**tensors, "extra": torch.zeros(1)}, folder / "model.safetensors")
    assert "unexpected extra" in line(folder)
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, folder / "model.safetensors")
    assert "NaN" in line(folder)
    (folder / "model.safetensors").write_bytes((folders["sam"] / "model.safetensors").read_bytes()[:5000])
    assert "download it again" in line(folder)
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in line(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    assert "pickled" in line(folder)
    fresh()
    (folder / "preprocessor_config.json").write_text('{"size": {"longest_edge": 1024}}')
    assert "64" in line(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "size": {"longest_edge": 64}}')
    assert opened(folder).frame.mean == (0.5, 0.5, 0.5)


def test_settings_that_run_other_code_are_dropped(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sam"], tmp_path / "x")
    path = tmp_path / "x" / "config.json"
    config = json.loads(path.read_text())
    config |= {
        "auto_map": {"AutoModel": "evil.Model"},
        "attn_implementation": "somebody/kernel",
        "_attn_implementation": "somebody/kernel",
        "quantization_config": {"quant_method": "bitsandbytes"},
    }
    config["vision_config"]["_attn_implementation"] = "somebody/kernel"
    path.write_text(json.dumps(config))
    assert opened(tmp_path / "x").name == "sam"


def test_parts_of_weights_are_joined(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sam"], tmp_path / "x")
    tensors = load_file(tmp_path / "x" / "model.safetensors")
    (tmp_path / "x" / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, tmp_path / "x" / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (tmp_path / "x" / "model.safetensors.index.json").write_text(json.dumps(index))
    whole, joined = opened(folders["sam"]), opened(tmp_path / "x")
    assert all(torch.equal(value, joined.state_dict()[key]) for key, value in whole.state_dict().items())
    index["weight_map"][names[0]] = "../../etc/passwd"
    (tmp_path / "x" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(HrsegError, match="passwd is missing"):
        load_model(f"sam:{tmp_path / 'x'}")


def test_a_hub_name_without_a_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was downloaded before needs no network; what was not says what to do."""
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def snapshot(**wanted: Any) -> str:
        asked.append(wanted)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(HrsegError, match=r"cannot be downloaded from the Hugging Face hub \(no network\)"):
        load_model("sam:facebook/sam-vit-base@main")
    assert [one.get("local_files_only", False) for one in asked] == [True, False]
    assert all((one["repo_id"], one["revision"]) == ("facebook/sam-vit-base", "main") for one in asked)
    assert not any("bin" in pattern for one in asked for pattern in one["allow_patterns"])
