"""The faster precision of a processor is measured once and cached per processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hrseg_cli.engine import devices
from hrseg_cli.engine.runtimes import automatic_device


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    return tmp_path / "hrseg" / "precision.json"


def measured(monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float) -> list[int]:
    """Replaces the measurement; the list counts its calls."""
    used: list[int] = []

    def seconds() -> dict[str, float]:
        used.append(1)
        return {"fp32": fp32, "bf16": bf16}

    monkeypatch.setattr(devices, "_seconds_of_a_convolution", seconds)
    return used


@pytest.mark.parametrize(("bf16", "best"), [(0.5, "bf16"), (0.95, "fp32"), (1.6, "fp32")])
def test_the_faster_precision_is_taken_and_remembered(
    cache: Path, monkeypatch: pytest.MonkeyPatch, bf16: float, best: str
) -> None:
    used = measured(monkeypatch, 1.0, bf16)
    assert [devices.best_precision("cpu") for _ in range(3)] == [best] * 3
    assert len(used) == 1
    assert list(json.loads(cache.read_text()).values()) == [best]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"another processor": "fp32"}', "null"])
def test_what_is_not_known_here_is_measured(cache: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    used = measured(monkeypatch, 1.0, 0.4)
    assert devices.best_precision("cpu") == "bf16"
    assert used


def test_another_processor_is_measured_for_itself(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines may share a home folder."""
    used = measured(monkeypatch, 1.0, 0.4)
    for name in ("one", "other", "one"):
        monkeypatch.setattr(devices, "processor", lambda name=name: name)
        devices.best_precision("cpu")
    assert len(used) == 2


def test_without_bf16_nothing_is_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = measured(monkeypatch, 1.0, 0.1)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert devices.best_precision("cpu") == "fp32"
    assert not used
    assert not cache.exists()


def test_both_precisions_are_timed() -> None:
    assert all(0 < seconds < 60 for seconds in devices._seconds_of_a_convolution().values())


def test_a_gpu_is_chosen_for_pytorch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert automatic_device("clicknet_m") == automatic_device("python:mine.py:click") == expected
        assert automatic_device("mine.onnx") == automatic_device("clicknet_m", "openvino") == "cpu"
