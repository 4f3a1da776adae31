"""hrseg: interactive image segmentation at high resolution, measured in clicks.

docs/python.md shows how to use it. Heavy packages are imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrseg_cli.api.clicking import Model, Session, load
    from hrseg_cli.api.evaluation import Result, evaluate, over_groups
    from hrseg_cli.api.fitting import Trained, adapt, train
    from hrseg_cli.api.prediction import Prediction, predict
    from hrseg_cli.api.refining import Refined, refine
    from hrseg_cli.api.reports import tables, verify
    from hrseg_cli.errors import HrsegError, UnknownName
    from hrseg_cli.interaction import Click, Trace

__version__ = "0.1.0"

_PLACES = {
    "Click": "interaction",
    "HrsegError": "errors",
    "Model": "api.clicking",
    "Prediction": "api.prediction",
    "Refined": "api.refining",
    "Result": "api.evaluation",
    "Session": "api.clicking",
    "Trace": "interaction",
    "Trained": "api.fitting",
    "UnknownName": "errors",
    "adapt": "api.fitting",
    "evaluate": "api.evaluation",
    "load": "api.clicking",
    "over_groups": "api.evaluation",
    "predict": "api.prediction",
    "refine": "api.refining",
    "tables": "api.reports",
    "train": "api.fitting",
    "verify": "api.reports",
}

__all__ = [
    "Click",
    "HrsegError",
    "Model",
    "Prediction",
    "Refined",
    "Result",
    "Session",
    "Trace",
    "Trained",
    "UnknownName",
    "__version__",
    "adapt",
    "evaluate",
    "load",
    "over_groups",
    "predict",
    "refine",
    "tables",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'hrseg_cli' has no attribute '{name}'")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"hrseg_cli.{_PLACES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name not in ("Any", "TYPE_CHECKING")), *__all__})
