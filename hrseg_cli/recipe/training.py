"""A recipe: everything that decides a training, from the data to the last learning rate.

Pixel sizes are (height, width). Probabilities are in [0, 1]. Defaults are RITM's (Sofiiuk et al. 2021, section 4, and
its public configurations) where RITM has the thing at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hrseg_cli.recipe.protocol import BinarizeRule, Pixels
from hrseg_cli.recipe.reading import Settings, checked, names, read

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Expansion = Annotated[float, Field(ge=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Nonnegative = Annotated[float, Field(ge=0)]


class Model(Settings):
    """name: of the catalog. options: of the architecture. weights: a checkpoint to start from.

    backbone: pretrained weights to start from: a name such as ``efficientnet_lite2``, or a file of ImageNet weights
        that the model's family reads; ``coverage``: share of the network's backbone that they must cover.
    """

    name: str = "h18s"
    options: dict[str, Any] = {}
    weights: str | None = None
    backbone: str | None = None
    coverage: Share = 0.8

    @model_validator(mode="after")
    def _one_start(self) -> Model:
        if self.weights and self.backbone:
            raise ValueError("give model.weights or model.backbone, not both")
        return self


class Adapter(Settings):
    """What is trained of a model that is there already.

    name: ``none`` (the whole model, kept as a model), or one of the catalog.
    options: of the adapter, see ``hrseg_cli.adapters``.
    """

    name: str = "none"
    options: dict[str, Any] = {}


class Part(Settings):
    """One dataset of the mixture.

    dataset: as ``hrseg evaluate --dataset`` takes it. weight: share of the samples, relative to the other parts; its
        number of images where none is given.
    group: a regular expression whose first bracket names what must stay together in the held-out share (a video), on
        the image's path below the folder of images, without suffix: '(.+)_\\d+$' or '(.+)/'.
    """

    dataset: str
    weight: float | None = Field(None, ge=0)
    group: str | None = None
    instances: bool = False
    binarize: BinarizeRule = "auto"
    stuff: Share = 0.3

    @field_validator("group")
    @classmethod
    def _has_brackets(cls, group: str | None) -> str | None:
        try:
            brackets = re.compile(group or "()").groups
        except re.error:
            brackets = 0
        if not brackets:
            raise ValueError("must be a regular expression with brackets around what stays together, e.g. '(.+)/'")
        return group


class Augmentation(Settings):
    """How a training sample is drawn from an image. The defaults are RITM's for COCO+LVIS; (low, high) are uniform.

    scale: factor of the resize, the same for both axes.
    flip: probability of mirroring left and right.
    rotate90: probability of turning by 0, 90, 180 or 270 degrees, each as likely.
    rotate_degrees: largest angle of a rotation either way.
    elastic: largest displacement of a smooth bend, as a share of the crop's shorter side; the amplitude is drawn from
        0 up to it. 0.03 is gentle, above 0.1 the picture may fold.
    brightness: added, as a share of 255. contrast: added to the factor 1. rgb_shift: largest shift of each channel, in
        grey levels. colour_probability: that of brightness with contrast, and that of the shift.
    blur: probability of a Gaussian blur, 0.3 to 1.5 pixels. noise: of Gaussian noise, 2 to 12 grey levels.
    jpeg: of a JPEG round trip at quality 40 to 95.
    zoom: probability that the window is the box of one object, its sides times a factor from ``zoom_expansion``, in
        place of ``scale``: what zoom-in shows the network. zoom_limit: that window is enlarged no more than this.
    keep_background: probability that a window without any object is kept and not drawn again.
    pad: what the mask says where the image ends before the crop does; the colour there is black.
    """

    scale: tuple[Positive, Positive] = (0.75, 1.40)
    flip: Share = 0.5
    rotate90: Share = 0.0
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    elastic: Annotated[float, Field(ge=0, le=0.25)] = 0.0
    brightness: tuple[float, float] = (-0.25, 0.25)
    contrast: tuple[float, float] = (-0.15, 0.40)
    colour_probability: Share = 0.75
    rgb_shift: Nonnegative = 10.0
    blur: Share = 0.0
    jpeg: Share = 0.0
    noise: Share = 0.0
    zoom: Share = 0.0
    zoom_expansion: tuple[Expansion, Expansion] = (1.1, 2.0)
    zoom_limit: Positive = 2.0
    keep_background: Share = 0.05
    pad: Literal["background", "ignore"] = "background"


class Composite(Settings):
    """How often and how an object of one image is pasted into another; (low, high) are uniform, but for ``area``.

    probability: of a sample to be a composite.
    area: what the object gets of the image's area, uniform in its logarithm. enlarge: largest factor of its resize.
    flip: probability of mirroring it left and right.
    colour: how far its colours go from the look of its own photograph (mean and spread in Lab) to that of the image:
        0 stays, 1 arrives.
    feather: sigma of the blur of its edge, in pixels. From 0.75 on, lines one pixel wide vanish.
    """

    probability: Share = 0.0
    area: tuple[Positive, Positive] = (0.02, 0.25)
    enlarge: Positive = 1.5
    flip: Share = 0.5
    colour: tuple[Share, Share] = (0.0, 0.5)
    feather: tuple[Nonnegative, Nonnegative] = (0.4, 0.8)


class Data(Settings):
    """crop: size of a training image. epoch: samples drawn in one. min_area: objects with fewer pixels in the crop are
    no targets. held_out: share of the images that training never sees, chosen by a hash of their names.

    longest: work on copies with sides of at most so many pixels, made once.
    max_objects: of an image with more objects so many, drawn anew each time, are loaded; the others are background.
    """

    parts: list[Part] = Field(min_length=1)
    crop: tuple[Pixels, Pixels] = (320, 480)
    epoch: int = Field(30000, ge=1)
    min_area: int = Field(1000, ge=1)
    held_out: float = Field(0.0, ge=0, lt=1)
    longest: int | None = Field(None, ge=64)
    max_objects: int = Field(1000, ge=1)
    augment: Augmentation = Augmentation()
    composite: Composite = Composite()


class Clicks(Settings):
    """How the clicks of a training sample are drawn; the defaults are RITM's for COCO+LVIS.

    max_points: slots of either sign. gamma: a further click is ``gamma`` times as likely as the one before.
    merge_probability: share of samples that ask for several objects at once, 2 to ``max_merged`` of them.
    erode_probability, erode_iterations: how often positive clicks keep at least so many pixels (in chessboard
        distance) from the object's edge; an object that keeps 10 pixels or less is not eroded.
    background, other, border: weights of where a negative click falls: anywhere outside, on other labelled pixels,
        in a band around the object, ``expand_ratio`` times the square root of its area wide.
    first_click_center: an object's first click falls where it is deeper than 1 / ``inner_k`` of its deepest (0: at
        the deepest); ``first_click_anywhere`` is the share of such clicks that fall anywhere all the same.
    only_one_first_click: of objects asked for at once only one is sure to get a click.
    off_centre: share of first clicks and of corrections placed as people place them: towards the middle but seldom in
        it, any pixel with a probability that grows with its squared distance to the edge.
    rounds: up to so many answers of the network, their number drawn anew for each batch, come before the one that is
        trained. drop_previous: probability that the previous mask is emptied after such rounds.
    """

    max_points: int = Field(24, ge=1)
    gamma: Share = 0.8
    merge_probability: Share = 0.15
    max_merged: int = Field(2, ge=2)
    erode_probability: Share = 0.9
    erode_iterations: int = Field(3, ge=0)
    background: Nonnegative = 0.1
    other: Nonnegative = 0.4
    border: Nonnegative = 0.5
    expand_ratio: Nonnegative = 0.1
    first_click_center: bool = False
    first_click_anywhere: Share = 0.0
    inner_k: Nonnegative = 1.7
    only_one_first_click: bool = False
    off_centre: Share = 0.0
    rounds: int = Field(3, ge=0)
    drop_previous: Share = 0.0

    @model_validator(mode="after")
    def _drawable(self) -> Clicks:
        if self.background + self.other + self.border == 0:
            raise ValueError("background, other and border are all 0; give one of them a weight")
        if self.inner_k != 0 and not self.inner_k > 1:
            raise ValueError("inner_k must be above 1, or 0 for the deepest pixel")
        return self


class Loss(Settings):
    """One term: a loss of the catalog on one of the network's outputs, times ``weight``.

    output: ``logits``, or another one that the network has, such as ``aux`` (logits of an inner layer), ``aux4`` and
        ``aux16`` (those at a quarter and a sixteenth of the size, compared with the share of object pixels there), or
        ``base`` (what a network below a resampling adapter answers by itself).
    options: of the loss; for "boundary" those of its distance map (see ``hrseg_cli.losses.signed_distance``).
    """

    name: str
    weight: float = Field(1.0, ge=0)
    output: str = "logits"
    options: dict[str, Any] = {}


class LossSchedule(Settings):
    """How the weights of the first term and of the boundary loss change from epoch to epoch (Kervadec et al. 2019):
    ``increase`` adds ``step`` to the boundary loss, ``rebalance`` takes as much from the first term."""

    kind: Literal["constant", "increase", "rebalance"] = "constant"
    step: Positive = 0.01


class Optim(Settings):
    """backbone: factor on the learning rate of layers that start from pretrained weights. heads: the same for the
    classifiers, which RITM trains at the backbone's rate though they start from nothing.

    schedule: ``steps`` multiplies by ``gamma`` at the epochs of ``milestones``; ``cosine`` falls to ``floor`` times lr.
    warmup: steps of linear rise. clip: largest norm of the gradient. accumulate: batches a step.
    ema: decay of an average of the weights that is kept beside them, and judged and saved in their place; 0: none.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(5e-4, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    backbone: float = Field(0.1, ge=0)
    heads: float = Field(0.1, ge=0)
    schedule: Literal["constant", "steps", "cosine"] = "steps"
    milestones: list[int] = [200, 220]
    gamma: float = Field(0.1, gt=0, le=1)
    floor: float = Field(0.0, ge=0, le=1)
    warmup: int = Field(0, ge=0)
    clip: float | None = Field(None, gt=0)
    accumulate: int = Field(1, ge=1)
    ema: float = Field(0.0, ge=0, lt=1)


class Validation(Settings):
    """A fixed set of held-out objects, clicked on after every ``every`` epochs; the best weights are those that need
    the fewest clicks.

    datasets: as ``--dataset``; the held-out share of the training data where none is given. objects: of each dataset,
        spread over it. until: the score that ends an object; metric: by which.
    patience: so many judgements without a better one end the training; None: never.
    """

    datasets: list[str] = []
    objects: int = Field(20, ge=1)
    every: int = Field(1, ge=1)
    protocol: str = "ritm"
    changes: list[str] = []
    metric: str = "iou"
    until: float = Field(0.9, gt=0)
    max_clicks: int = Field(20, ge=1)
    patience: int | None = Field(None, ge=1)


class Recipe(Settings):
    """batch: samples a step and process. epochs: of ``data.epoch`` samples each.

    precision: ``auto`` is the faster one of bf16 and fp32, measured; the run records it and a resumed run keeps it.
    half: weights are written as float16, half the size; the checkpoint to go on from stays as it is.
    """

    name: str
    model: Model = Model()
    adapter: Adapter = Adapter()
    data: Data
    clicks: Clicks = Clicks()
    losses: list[Loss] = Field([Loss(name="nfl"), Loss(name="bce", weight=0.4, output="aux")], min_length=1)
    loss_schedule: LossSchedule = LossSchedule()
    optim: Optim = Optim()
    validation: Validation = Validation()
    batch: int = Field(28, ge=1)
    epochs: int = Field(230, ge=1)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    channels_last: bool = False
    half: bool = False
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _trainable(self) -> Recipe:
        if self.adapter.name != "none" and not self.model.weights:
            raise ValueError("an adapter needs a trained base; set model.weights, or use 'hrseg adapt --from MODEL'")
        boundaries = [k for k, term in enumerate(self.losses) if term.name == "boundary"]
        if len(boundaries) > 1:
            raise ValueError("losses: 'boundary' stands there twice; keep one")
        if self.loss_schedule.kind != "constant" and boundaries in ([], [0]):
            raise ValueError("loss_schedule: wants another loss first and 'boundary' after it")
        return self

    @property
    def boundary(self) -> Loss | None:
        """The boundary loss, if it is among the terms."""
        return next((term for term in self.losses if term.name == "boundary"), None)


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name or by path of a YAML file, changed by ``key=value`` texts such as ``optim.lr=1e-4``.

    A changed recipe carries the changes in its name. Raises UnknownName or HrsegError.
    """
    return read(Recipe, "recipe", name, overrides)


def recipe_of(settings: Any, what: str) -> Recipe:
    """A recipe from what ``model_dump`` gave, as a run folder keeps it."""
    return checked(Recipe, settings, what)


def recipe_names() -> list[str]:
    """Names of the recipes that come with hrseg."""
    return names("recipe")
