"""Files that a user may give: the right ones load, all others are identified in a one-line error."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import GOLDEN, deterministic_weights
from safetensors.torch import save_file

from hrseg_cli import catalog
from hrseg_cli.checkpoints import formats
from hrseg_cli.checkpoints.adapters import attach, save_adapter
from hrseg_cli.checkpoints.formats import read_checkpoint, save_checkpoint
from hrseg_cli.checkpoints.provenance import weights_hash
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.hrnet import h18s
from hrseg_cli.models.hrnet.network import ClickHRNet

STATES = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))
State = dict[str, torch.Tensor]
NARROW = {"width": 4, "ocr_width": 8}


@pytest.fixture(scope="module")
def weights() -> State:
    """Of a narrow h18s: files of 17 MB would take most of the time."""
    return deterministic_weights(h18s(**NARROW).state_dict())


def ritm(state: State, size: str = "", **changes: Any) -> dict[str, Any]:
    """A checkpoint as RITM saves it, with a configuration written by its code; that of :func:`weights` by default."""
    config = json.loads(json.dumps(STATES[size or "h18s"]["config"]))
    narrow = {} if size else {key: {"type": "int", "value": value, "specified": True} for key, value in NARROW.items()}
    config["params"].update({**narrow, **changes})
    return {"state_dict": state, "config": config}


# The larger ones differ from h18s and h18_baseline by numbers alone.
@pytest.mark.parametrize(
    "size", ["h18s", "h18_baseline", *(pytest.param(size, marks=pytest.mark.slow) for size in ("h18", "h32"))]
)
def test_public_configurations_are_read(size: str, tmp_path: Path) -> None:
    """All four sizes through a real file; all weights are unchanged."""
    state = deterministic_weights(catalog.resolve("model", size)().state_dict())
    torch.save(ritm(state, size), tmp_path / "coco_lvis.pth")
    model, provenance = read_checkpoint(tmp_path / "coco_lvis.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    expected = catalog.resolve("model", size)().config
    assert {**model.config, "norm_mean_std": None} == {**expected, "norm_mean_std": None}
    assert model.with_prev_mask is (size != "h18_baseline")
    assert len(provenance["sha256"]) == 64


def test_own_format_goes_round_and_is_reproducible(weights: State, tmp_path: Path) -> None:
    model = h18s(**NARROW)
    model.load_state_dict(weights)
    for name in ("a", "b"):
        save_checkpoint(model, tmp_path / f"{name}.safetensors", {"recipe": "test", "seed": 3})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded, provenance = load_model(str(tmp_path / "a.safetensors"))
    assert provenance["recipe"] == "test"
    assert not loaded.training
    assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())


def test_half_precision_files_are_read_in_single(weights: State, tmp_path: Path) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    torch.save(ritm(half), tmp_path / "half.pth")
    model, _ = read_checkpoint(tmp_path / "half.pth")
    assert {value.dtype for value in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "options",
    [{"width": 700}, {"width": 10**5}, {"width": 10**9}, {"ocr_width": 10**7}, {"width": "18"}, {"norm_radius": 10**6}],
)
def test_sizes_that_a_file_names_are_compared_before_they_are_built(
    options: dict[str, Any], weights: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny checkpoint must not exhaust memory: models are built on the meta device first."""
    own = {**NARROW, "small": True, **options}
    text = json.dumps({"format": 1, "kind": "model", "name": "h18s", "options": own})
    save_file(weights, tmp_path / "a.safetensors", {"hrseg": text})
    changes = {key: {"type": "int", "value": value, "specified": True} for key, value in options.items()}
    torch.save(ritm(weights, **changes), tmp_path / "a.pth")
    built = ClickHRNet.__init__

    def shapes_only(self: ClickHRNet, **named: Any) -> None:
        assert torch.get_default_device().type == "meta"
        built(self, **named)

    monkeypatch.setattr(ClickHRNet, "__init__", shapes_only)
    for name in ("a.safetensors", "a.pth"):
        with pytest.raises(HrsegError, match=rf"{name}: .*(its configuration says|cannot be built)"):
            read_checkpoint(tmp_path / name)


@pytest.fixture(scope="module")
def shipped() -> str:
    return weights_hash(load_model("h18s")[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [("lora", {"rank": 10**9}), ("lora", {"rank": 10**18}), ("conv", {"design": "b", "width": 4 * 10**7})],
)
def test_sizes_that_an_adapter_names_are_compared_too(
    name: str, options: dict[str, Any], shipped: str, tmp_path: Path
) -> None:
    text = {"format": 1, "kind": "adapter", "name": name, "options": options, "base": shipped}
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", {"hrseg": json.dumps({**text, "provenance": {}})})
    with pytest.raises(HrsegError, match=r"a\.safetensors: "):
        load_model(str(tmp_path / "a.safetensors"))


def test_a_tensor_larger_than_its_numbers_is_refused(weights: State, tmp_path: Path) -> None:
    """A single value broadcast 10^12 times by strides would be materialised when read."""
    key = next(iter(weights))
    torch.save(ritm({**weights, key: torch.zeros(1).expand(10**6, 10**6)}), tmp_path / "a.pth")
    with pytest.raises(HrsegError, match=r"a\.pth: one of its tensors is a broadcast view"):
        read_checkpoint(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/data.pkl", bytes(10**7))
    with pytest.raises(HrsegError, match=r"b\.pth: would unpack to 10,000,000 bytes"):
        read_checkpoint(tmp_path / "b.pth")


class Evil:
    """Touches a file when unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def truncated(path: Path, content: Any) -> None:
    torch.save(content, path)
    path.write_bytes(path.read_bytes()[:-4000])


def damaged_own(path: Path, state: State) -> None:
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-100])


WRONG = {
    "empty": (lambda p, s: p.write_bytes(b""), "empty"),
    "web page": (lambda p, s: p.write_text("\n<!DOCTYPE html><html>Not found"), "web page"),
    "lfs pointer": (lambda p, s: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"), "LFS"),
    "text": (lambda p, s: p.write_text("hello, these are no weights"), "neither"),
    "truncated": (lambda p, s: truncated(p, ritm(s)), "damaged or truncated PyTorch"),
    "bare weights": (lambda p, s: torch.save(s, p), "without their 'config'"),
    "stages": (lambda p, s: torch.save([ritm(s), ritm(s)], p), "list of 2 stages"),
    "tensor": (lambda p, s: torch.save(torch.zeros(3), p), "contains a Tensor"),
    "imagenet": (
        lambda p, s: torch.save({k.removeprefix("feature_extractor."): v for k, v in s.items()}, p),
        "ImageNet HRNet backbone",
    ),
    "mae": (lambda p, s: torch.save({"model": {"pos_embed": torch.zeros(1)}}, p), "plain ViT"),
    "sam": (lambda p, s: torch.save({"image_encoder.pos_embed": torch.zeros(1)}, p), "SAM"),
    "lightning": (lambda p, s: torch.save({"pytorch-lightning_version": "2", "state_dict": s}, p), "Lightning"),
    "adapter": (lambda p, s: torch.save({"layer.lora_A": torch.zeros(1)}, p), "adapter"),
    "trainer": (lambda p, s: torch.save({"model": s, "optimizer": {}}, p), "training checkpoint"),
    "deeplab": (
        lambda p, s: torch.save(
            {"state_dict": s, "config": {"class": "isegm.model.is_deeplab_model.D", "params": {}}}, p
        ),
        "DeepLab",
    ),
    "simpleclick": (
        lambda p, s: torch.save({"state_dict": s, "config": {"class": "x.is_plainvit_model.V", "params": {}}}, p),
        "SimpleClick",
    ),
    "odd config": (lambda p, s: torch.save({"state_dict": s, "config": 3}, p), "not RITM's"),
    "fork": (
        lambda p, s: torch.save(ritm(s, extra_head={"type": "builtin", "value": 1, "specified": True}), p),
        "unknown option 'extra_head'",
    ),
    "torchscript": (lambda p, s: zipfile.ZipFile(p, "w").writestr("net/constants.pkl", b"x"), "TorchScript"),
    "zip of something": (lambda p, s: zipfile.ZipFile(p, "w").writestr("model.pth", b"x"), "zip archive of 1 files"),
    "no dictionary": (lambda p, s: torch.save({"state_dict": [1], "config": STATES["h18s"]["config"]}, p), "tensors"),
    "no tensors": (lambda p, s: torch.save(ritm({"a": 3}), p), "tensors"),  # type: ignore[dict-item]
    "odd metadata": (
        lambda p, s: save_file(
            s, p, {"hrseg": json.dumps({"format": "two", "kind": "model", "name": "h18s", "options": {}})}
        ),
        "cannot be read",
    ),
    "click groups": (
        lambda p, s: torch.save(ritm(s, clicks_groups={"type": "builtin", "value": [1], "specified": True}), p),
        "click groups",
    ),
    "missing keys": (lambda p, s: torch.save(ritm(dict(list(s.items())[5:])), p), "5 missing"),
    "other size": (
        lambda p, s: torch.save(ritm(s, ocr_width={"type": "builtin", "value": 64, "specified": True}), p),
        "another size",
    ),
    "diverged": (
        lambda p, s: torch.save(ritm({**s, "maps_transform.0.bias": torch.full((16,), float("nan"))}), p),
        "NaN",
    ),
    "foreign safetensors": (lambda p, s: save_file(s, p), "another program"),
    "torn safetensors": (damaged_own, "damaged or truncated safetensors"),
    "own adapter": (
        lambda p, s: save_file(
            s, p, {"hrseg": json.dumps({"format": 1, "kind": "adapter", "name": "lora", "options": {}})}
        ),
        "not a whole model",
    ),
    "newer": (
        lambda p, s: save_file(
            s, p, {"hrseg": json.dumps({"format": 9, "kind": "model", "name": "hrnet_ocr", "options": {}})}
        ),
        "newer hrseg",
    ),
    "edited": (
        lambda p, s: save_file(
            s, p, {"hrseg": json.dumps({"format": 1, "kind": "model", "name": "hrnet_ocr", "options": {"wide": 1}})}
        ),
        "cannot be built",
    ),
    "code": (lambda p, s: torch.save({"state_dict": s, "config": Evil(p.parent / "owned")}, p), "more than tensors"),
    "plain pickle with code": (lambda p, s: p.write_bytes(pickle.dumps(Evil(p.parent / "owned"))), "more than tensors"),
    "plain pickle": (lambda p, s: p.write_bytes(pickle.dumps({"a": 1})[:-1]), "damaged|contains|more than"),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_wrong_file_says_what_it_is(what: str, weights: State, tmp_path: Path) -> None:
    """A one-line error that names the file, and no code in the file runs."""
    write, message = WRONG[what]
    path = tmp_path / "model.pth"
    write(path, dict(weights))
    with pytest.raises(HrsegError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.fixture
def adapted(weights: State, tmp_path: Path) -> tuple[Path, Path]:
    """A base and its adapter, in folders named like runs of a modified recipe."""
    base = tmp_path / "train-tiny+epochs=1" / "best.safetensors"
    adapter = tmp_path / "adapt-head-boxes+epochs=2" / "best.safetensors"
    model = h18s(**NARROW)
    model.load_state_dict(weights)
    save_checkpoint(model, base, {})
    digest = weights_hash(model)
    save_adapter(attach(model, "head", {}), adapter, "head", {}, digest, {"base": base.name})
    return base, adapter


def test_a_plus_in_a_folder_is_not_the_one_before_the_adapter(adapted: tuple[Path, Path]) -> None:
    base, adapter = adapted
    assert load_model(f"{base}+{adapter}")[1]["adapter"]["name"] == "head"
    assert load_model(f"{base}+{adapter}+{adapter}")[1]["file"] == base.name
    missing = adapter.with_name("none.safetensors")
    with pytest.raises(HrsegError, match=r"none.safetensors: no such file; give BASE\+ADAPTER"):
        load_model(f"h18s+{missing}")


def test_a_damaged_adapter_is_called_damaged(adapted: tuple[Path, Path]) -> None:
    base, adapter = adapted
    adapter.write_bytes(adapter.read_bytes()[:-100])
    with pytest.raises(HrsegError, match=r"boxes\+epochs=2/best.safetensors: damaged or truncated safetensors"):
        load_model(f"{base}+{adapter}")


@pytest.mark.parametrize(
    ("spec", "message", "kind"),
    [
        ("missing.pth", "no such file", HrsegError),
        ("h32", "ships no weights", HrsegError),
        ("grabcutt", "Did you mean 'grabcut'", UnknownName),
    ],
)
def test_a_name_that_is_no_model(spec: str, message: str, kind: type[HrsegError]) -> None:
    with pytest.raises(kind, match=message):
        load_model(spec)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_the_prefix_of_a_wrapper_is_taken_off(prefix: str) -> None:
    """DataParallel, torch.compile and Lightning prepend one to every name; a part of the names is the model's own."""
    state = {"model.weight": torch.zeros(1), "head.bias": torch.ones(1)}
    found = formats._unwrapped({prefix + key: value for key, value in state.items()})
    assert found == state
    assert formats._unwrapped(state) == state


def test_counters_that_old_programs_do_not_save_may_be_missing(tmp_path: Path) -> None:
    wanted = {"bn.weight": torch.zeros(2), "bn.num_batches_tracked": torch.tensor(0)}
    formats.check_shapes(wanted, {"bn.weight": torch.zeros(2)}, tmp_path)
    with pytest.raises(HrsegError, match="1 missing"):
        formats.check_shapes(wanted, {"bn.num_batches_tracked": torch.tensor(0)}, tmp_path)
