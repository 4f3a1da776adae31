"""Models built for their shapes alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hrseg_cli import catalog
from hrseg_cli.models.parts.meta import shapes_only

READ = """
import sys
from hrseg_cli.checkpoints.resolve import load_model
model, _ = load_model("clicknet_m")
model.for_inference()
print(*(name for name in ("sympy", "torch._dynamo", "torch.onnx") if name in sys.modules))
"""


@pytest.mark.parametrize("name", ["h18s", "clicknet_m"])
def test_shapes_are_those_of_the_model(name: str) -> None:
    with shapes_only():
        shapes = catalog.resolve("model", name)().state_dict()
    assert all(value.is_meta for value in shapes.values())
    built = catalog.resolve("model", name)().state_dict()
    assert {key: value.shape for key, value in shapes.items()} == {key: value.shape for key, value in built.items()}


def test_reading_a_checkpoint_imports_no_compiler() -> None:
    """PyTorch imports it for whatever its meta device computes in Python: 120 MB, and seconds at each start."""
    assert subprocess.run([sys.executable, "-c", READ], check=True, capture_output=True, text=True).stdout == "\n"
