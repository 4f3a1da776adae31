"""A recipe: all settings of a training run, from the data to the learning rate schedule.

Pixel sizes are (height, width). Probabilities are in [0, 1]. Defaults are RITM's (Sofiiuk et al. 2021, section 4, and
its public configurations) wherever RITM has the setting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hrseg_cli.limits import CLICKS, OBJECTS
from hrseg_cli.recipe.protocol import BinarizeRule, Pixels
from hrseg_cli.recipe.reading import RISING, Settings, checked, names, read

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Expansion = Annotated[float, Field(ge=1, le=100)]
Factor = Annotated[float, Field(ge=0.01, le=100)]
Shift = Annotated[float, Field(ge=-2, le=2)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Nonnegative = Annotated[float, Field(ge=0)]
Area = Annotated[float, Field(gt=0, le=1)]
Blur = Annotated[float, Field(ge=0, le=100)]  # sigma in pixels

LEAST_LATE, MOST_LATE = 2, 8  # corrective rounds without training, see :class:`Clicks`


class Start(Settings):
    """name: from the catalog. options: of the architecture. weights: a checkpoint to start from.

    backbone: pretrained weights to start from: a name such as ``efficientnet_lite2``, or a file of ImageNet weights in
        a layout that the model reads. coverage: fraction of the model's backbone that they must cover.
    """

    name: str = "h18s"
    options: dict[str, Any] = {}
    weights: str | None = None
    backbone: str | None = None
    coverage: Share = 0.8

    @model_validator(mode="after")
    def _one_start(self) -> Start:
        if self.weights and self.backbone:
            raise ValueError("set model.weights or model.backbone, not both")
        return self


class Adapter(Settings):
    """The part of an existing model to train.

    name: ``none`` (the whole model, saved as a model), or an adapter from the catalog.
    options: of the adapter; see ``hrseg_cli.adapters``.
    """

    name: str = "none"
    options: dict[str, Any] = {}


class Part(Settings):
    """One dataset of the training mixture.

    dataset: as for ``hrseg evaluate --dataset``. weight: share of the samples relative to the other parts; by default
        its number of images.
    group: a regular expression whose first group names images that must not be split between training and held-out
        share, such as frames of a video. Matched against the image's path below the images folder, without suffix:
        '(.+)_\\d+$' or '(.+)/'.
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
            raise ValueError("must be a regular expression with a group in parentheses, e.g. '(.+)/'")
        return group


class Augmentation(Settings):
    """How a training sample is cut from an image. Defaults are RITM's for COCO+LVIS; (low, high) are uniform ranges.

    scale: resize factor, the same for both axes.
    flip: probability of a horizontal flip.
    rotate90: probability of a rotation by 0, 90, 180 or 270 degrees, chosen uniformly.
    rotate_degrees: maximum angle of a free rotation in either direction.
    elastic: maximum displacement of an elastic deformation, as a fraction of the crop's shorter side; the amplitude is
        uniform between 0 and this. 0.03 is gentle; above 0.1 the image may fold.
    brightness: offset, as a fraction of 255. contrast: added to a factor of 1. rgb_shift: maximum shift of each
        channel, in grey levels. colour_probability: of brightness and contrast together, and of the shift.
    blur: probability of Gaussian blur, 0.3 to 1.5 pixels. noise: of Gaussian noise, 2 to 12 grey levels.
    jpeg: of JPEG compression at quality 40 to 95.
    zoom: probability that the window is the box of one object, with its sides times a factor from ``zoom_expansion``,
        instead of using ``scale``; this is what zoom-in shows the network. zoom_limit: maximum enlargement of that
        window.
    keep_background: probability of keeping a window without an object instead of drawing another. With 0, an image in
        whose window no object is large enough is replaced by another image.
    pad: mask value of pixels outside the image; their colour is black.
    """

    scale: Annotated[tuple[Factor, Factor], RISING] = (0.75, 1.40)
    flip: Share = 0.5
    rotate90: Share = 0.0
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    elastic: Annotated[float, Field(ge=0, le=0.25)] = 0.0
    brightness: Annotated[tuple[Shift, Shift], RISING] = (-0.25, 0.25)
    contrast: Annotated[tuple[Shift, Shift], RISING] = (-0.15, 0.40)
    colour_probability: Share = 0.75
    rgb_shift: Annotated[float, Field(ge=0, le=255)] = 10.0
    blur: Share = 0.0
    jpeg: Share = 0.0
    noise: Share = 0.0
    zoom: Share = 0.0
    zoom_expansion: Annotated[tuple[Expansion, Expansion], RISING] = (1.1, 2.0)
    zoom_limit: Factor = 2.0
    keep_background: Share = 0.05
    pad: Literal["background", "ignore"] = "background"


class Composite(Settings):
    """Whether and how an object of one image is pasted into another; (low, high) are uniform, except ``area``.

    probability: of a sample being a composite.
    area: area of the object as a fraction of the image, log-uniform. enlarge: maximum resize factor of the object.
    flip: probability of flipping it horizontally.
    colour: strength of the colour transfer (mean and spread in Lab) from its own photograph to the image: 0 none,
        1 complete.
    feather: sigma of the blur of its edge, in pixels. From 0.75 up, lines one pixel wide vanish.
    duplicate: probability that instead one or two copies of one of the image's own objects are pasted into it: only
        clicks tell it from its copies.
    """

    probability: Share = 0.0
    duplicate: Share = 0.0
    area: Annotated[tuple[Area, Area], RISING] = (0.02, 0.25)
    enlarge: Factor = 1.5
    flip: Share = 0.5
    colour: Annotated[tuple[Share, Share], RISING] = (0.0, 0.5)
    feather: Annotated[tuple[Blur, Blur], RISING] = (0.4, 0.8)

    @model_validator(mode="after")
    def _at_most_one(self) -> Composite:
        if self.probability + self.duplicate > 1:
            raise ValueError("probability and duplicate add up to more than 1; lower one of them")
        return self


class Size(Settings):
    """One size of training crops. crop: (height, width). batch: samples per step and process. share: of the samples,
    relative to the other sizes."""

    crop: tuple[Pixels, Pixels]
    batch: int = Field(ge=1)
    share: Positive = 1.0


class Data(Settings):
    """crop: size of a training image. epoch: samples per epoch. min_area: objects with fewer pixels in the crop are not
    used as targets. held_out: fraction of the images that training never sees, chosen by a hash of their names.

    sizes: crops of several sizes, each with its own batch, instead of ``crop`` and ``batch``. ``augment.scale`` and
        ``min_area`` are then those of ``crop``; other sizes have them in proportion.
    longest: use copies with sides of at most this many pixels, made once.
    max_objects: of an image with more objects, load only this many, chosen at random each time; the others are
        background.
    cache: megabytes of decoded images and masks that each training process keeps in memory.
    """

    parts: list[Part] = Field(min_length=1)
    crop: tuple[Pixels, Pixels] = (320, 480)
    epoch: int = Field(30000, ge=1, le=10**9)
    min_area: int = Field(1000, ge=1, le=10**9)
    held_out: float = Field(0.0, ge=0, lt=1)
    sizes: list[Size] = []
    longest: int | None = Field(None, ge=64, le=65_500)  # a JPEG has no longer sides
    max_objects: int = Field(1000, ge=1, le=OBJECTS)
    cache: int = Field(0, ge=0, le=10**7)
    augment: Augmentation = Augmentation()
    composite: Composite = Composite()

    def at(self, crop: tuple[int, int]) -> Data:
        """These settings for crops of another size: the scale in proportion, the smallest area to its square."""
        ratio = math.sqrt(crop[0] * crop[1] / (self.crop[0] * self.crop[1]))
        low, high = self.augment.scale
        augment = self.augment.model_copy(update={"scale": (low * ratio, high * ratio)})
        area = max(1, round(self.min_area * ratio**2))
        return self.model_copy(update={"crop": crop, "min_area": area, "augment": augment})


class Clicks(Settings):
    """How the clicks of a training sample are sampled. Defaults are RITM's for COCO+LVIS.

    max_points: slots per sign. gamma: each further click is ``gamma`` times as likely as the previous one.
    merge_probability: fraction of samples that merge several objects, 2 to ``max_merged`` of them, into one target.
    erode_probability, erode_iterations: how often positive clicks keep at least this chessboard distance (pixels) from
        the object's edge; an object that would keep 10 pixels or fewer is not eroded.
    background, other, border: weights of where a negative click falls: anywhere outside, on other labelled pixels, in a
        band around the object, ``expand_ratio`` times the square root of its area wide.
    first_click_center: an object's first click is at a depth of more than 1 / ``inner_k`` of the maximum (0: at the
        maximum). first_click_anywhere: fraction of such clicks that fall anywhere nevertheless.
    only_one_first_click: of merged objects only one is guaranteed to get a click.
    off_centre: fraction of first clicks and corrections placed as people click: at any pixel, with a probability that
        grows with its squared distance to the edge.
    rounds: maximum number of corrective rounds, random per batch; or the relative probabilities of 0, 1, 2, ... rounds.
    trained: which predictions of these rounds are trained: the ``last``, or ``every`` one, each by an optimizer step.
    late: with ``trained=every``, fraction of the batches that begin with 2 to 8 corrective rounds without training, so
        that the network also learns what late clicks see.
    drop_previous: probability of clearing the previous mask before the last prediction, after such rounds.
    box_probability: fraction of samples whose prompt includes the object's box, for networks that take boxes. Each edge
        is displaced by a normal deviate of ``box_jitter`` times the box's size. box_only: fraction of these without
        clicks.
    perturbed_probability: fraction of the other samples that start from a faulty previous mask (a neighbour included, a
        part missing, an extra blob) and one correction of it.
    focus: fraction of samples that are close-ups of an object's outline, as the focus views of a protocol (Lin et al.
        2022, FocusCut). Their previous mask is the perturbed ground truth, and they get a click in the centre.
    """

    max_points: int = Field(24, ge=1, le=1000)
    gamma: Share = 0.8
    merge_probability: Share = 0.15
    max_merged: int = Field(2, ge=2, le=1000)
    erode_probability: Share = 0.9
    erode_iterations: int = Field(3, ge=0, le=1000)
    background: Nonnegative = 0.1
    other: Nonnegative = 0.4
    border: Nonnegative = 0.5
    expand_ratio: Annotated[float, Field(ge=0, le=10)] = 0.1
    first_click_center: bool = False
    first_click_anywhere: Share = 0.0
    inner_k: Nonnegative = 1.7
    only_one_first_click: bool = False
    off_centre: Share = 0.0
    rounds: (
        Annotated[int, Field(ge=0, le=1000)] | Annotated[list[Nonnegative], Field(min_length=1, max_length=1000)]
    ) = 3
    trained: Literal["last", "every"] = "last"
    late: Share = 0.0
    drop_previous: Share = 0.0
    box_probability: Share = 0.0
    box_only: Share = 0.7
    box_jitter: Annotated[float, Field(ge=0, le=1)] = 0.05
    perturbed_probability: Share = 0.0
    focus: Share = 0.0

    @property
    def round_shares(self) -> list[float]:
        """Relative probabilities of 0, 1, 2, ... corrective rounds."""
        return [1.0] * (self.rounds + 1) if isinstance(self.rounds, int) else self.rounds

    @model_validator(mode="after")
    def _correctable(self) -> Clicks:
        if not sum(self.round_shares):
            raise ValueError("rounds are all 0; set one of them above 0")
        if self.trained == "every" and self.drop_previous:
            raise ValueError("drop_previous works with trained=last only; set it to 0")
        if self.trained == "last" and self.late:
            raise ValueError("late works with trained=every only; set it to 0")
        return self

    @model_validator(mode="after")
    def _drawable(self) -> Clicks:
        if self.background + self.other + self.border == 0:
            raise ValueError("background, other and border are all 0; set one of them above 0")
        if self.inner_k != 0 and not self.inner_k > 1:
            raise ValueError("inner_k must be above 1, or 0 for the deepest pixel")
        return self


class Coarse(Settings):
    """The coarse masks that a refiner is trained on: ground truth with simplified outlines, dilated and eroded in
    random places (Cheng et al. 2020, CascadePSP).

    iou: their IoU with the ground truth, uniform in (low, high).
    """

    iou: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]] = (0.8, 0.8)


class Loss(Settings):
    """One loss term: a loss from the catalog on one of the network's outputs, times ``weight``.

    output: ``logits``, or another output of the network, such as ``aux`` (logits of an inner layer), ``aux4`` and
        ``aux16`` (at 1/4 and 1/16 of the size, compared with the fraction of object pixels), or ``base`` (output of
        the base network inside a resampling adapter).
    options: of the loss; for "boundary" those of its distance map (see ``hrseg_cli.losses.signed_distance``).
    """

    name: str
    weight: float = Field(1.0, ge=0)
    output: str = "logits"
    options: dict[str, Any] = {}


class LossSchedule(Settings):
    """How the weights of the first term and the boundary loss change per epoch (Kervadec et al. 2019): ``increase``
    adds ``step`` to the boundary loss; ``rebalance`` also subtracts it from the first term."""

    kind: Literal["constant", "increase", "rebalance"] = "constant"
    step: Positive = 0.01


class Optim(Settings):
    """backbone: learning rate factor of layers that start from pretrained weights. heads: the same for the classifiers,
    which RITM trains at the backbone's rate although they start from random weights.

    betas: of Adam; SGD takes the first as its momentum, RMSprop the second as its decay.
    backbone_later: with ``clicks.trained=every``, fraction of the steps after a batch's first that train the backbone
        too. The other steps train only the other layers, which is faster.
    layer_decay: learning rate factor per pretrained layer, from the last (once) to the first, of transformers.
    freeze_norms: BatchNorm normalises with its running statistics and does not update them, as small batches need.
    schedule: ``steps`` multiplies by ``gamma`` at the epochs in ``milestones``; ``cosine`` decays to ``floor`` * lr,
        after a constant first part of the training of ``level``.
    warmup: steps of linear warmup. clip: maximum gradient norm. accumulate: batches per step.
    ema: decay of an exponential moving average of the weights, which is validated and saved instead of them; 0: none.
    """

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    lr: float = Field(5e-4, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    backbone: float = Field(0.1, ge=0)
    heads: float = Field(0.1, ge=0)
    backbone_later: Share = 1.0
    layer_decay: float = Field(1.0, gt=0, le=1)
    freeze_norms: bool = False
    schedule: Literal["constant", "steps", "cosine"] = "steps"
    milestones: list[Annotated[int, Field(ge=0, le=10**9)]] = [200, 220]
    gamma: float = Field(0.1, gt=0, le=1)
    floor: float = Field(0.0, ge=0, le=1)
    level: float = Field(0.0, ge=0, lt=1)
    warmup: int = Field(0, ge=0, le=10**9)
    clip: float | None = Field(None, gt=0)
    accumulate: int = Field(1, ge=1, le=10**6)
    ema: float = Field(0.0, ge=0, lt=1)


class Validation(Settings):
    """Validation by clicks on a fixed set of held-out objects, every ``every`` epochs; the best weights are those that
    need the fewest clicks. A refiner is validated on coarse masks of these objects, by the mean of ``metric``.

    datasets: as for ``--dataset``; by default the held-out share of the training data. objects: per dataset, evenly
        spaced. until: the score at which an object is done; metric: of which metric.
    patience: stop training after this many validations without an improvement; None: never.
    """

    datasets: list[str] = []
    objects: int = Field(20, ge=1, le=10**9)
    every: int = Field(1, ge=1, le=10**9)
    protocol: str = "ritm"
    changes: list[str] = []
    metric: str = "iou"
    until: float = Field(0.9, gt=0)
    max_clicks: int = Field(20, ge=1, le=CLICKS)
    patience: int | None = Field(None, ge=1, le=10**9)


class Recipe(Settings):
    """task: ``click`` trains a click model, ``refine`` the network of a refiner, on coarse masks instead of clicks.
        ``distil`` trains a click model to have the image features of another one, ``teacher``, without masks and
        clicks: as a start for ``click``.

    teacher: a checkpoint, or the name of a model that ships with weights.

    batch: samples per step and process. epochs: of ``data.epoch`` samples each.

    precision: ``auto`` measures and uses the faster of bf16 and fp32; the run records it, and a resumed run keeps it.
    half: save weights as float16, half the size; the checkpoint for resuming is not affected.
    """

    name: str
    task: Literal["click", "refine", "distil"] = "click"
    teacher: str | None = None
    model: Start = Start()
    adapter: Adapter = Adapter()
    data: Data
    clicks: Clicks = Clicks()
    coarse: Coarse = Coarse()
    losses: list[Loss] = Field([Loss(name="nfl"), Loss(name="bce", weight=0.4, output="aux")], min_length=1)
    loss_schedule: LossSchedule = LossSchedule()
    optim: Optim = Optim()
    validation: Validation = Validation()
    batch: int = Field(28, ge=1, le=10_000)
    epochs: int = Field(230, ge=1, le=10**9)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    channels_last: bool = False
    half: bool = False
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _trainable(self) -> Recipe:
        if not any(part.weight is None or part.weight for part in self.data.parts):
            raise ValueError("data.parts: every weight is 0; set one of them above 0")
        if self.adapter.name != "none" and not self.model.weights:
            raise ValueError("an adapter needs a trained base; set model.weights, or use 'hrseg adapt --from MODEL'")
        if self.task == "refine" and (self.model.weights or self.model.backbone or self.adapter.name != "none"):
            raise ValueError(
                "task refine trains all weights from the start; remove model.weights, backbone and adapter"
            )
        if (self.task == "distil") != (self.teacher is not None):
            raise ValueError("task distil needs a teacher, and only task distil; set or remove teacher")
        if self.task == "distil" and self.adapter.name != "none":
            raise ValueError("task distil trains a whole model; remove adapter")
        boundaries = [k for k, term in enumerate(self.losses) if term.name == "boundary"]
        if len(boundaries) > 1:
            raise ValueError("losses: 'boundary' is listed twice; keep one")
        if self.loss_schedule.kind != "constant" and boundaries in ([], [0]):
            raise ValueError("loss_schedule: needs another loss first and 'boundary' after it")
        clicks = self.clicks
        corrections = len(clicks.round_shares) - 1 + (clicks.perturbed_probability > 0)
        corrections += MOST_LATE if clicks.late else 0
        if corrections > clicks.max_points:
            raise ValueError(f"clicks.max_points: must be at least {corrections}, for the corrections of a sample")
        if self.clicks.trained == "every" and self.optim.accumulate > 1:
            raise ValueError("clicks.trained=every takes a step after each click; set optim.accumulate=1")
        return self

    @property
    def sizes(self) -> list[Size]:
        """The sizes of training crops with their batches."""
        return self.data.sizes or [Size(crop=self.data.crop, batch=self.batch)]

    @property
    def boundary(self) -> Loss | None:
        """The boundary loss, if it is one of the terms."""
        return next((term for term in self.losses if term.name == "boundary"), None)


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name or path of a YAML file, with ``key=value`` overrides such as ``optim.lr=1e-4``.

    The name of a changed recipe includes the changes. Raises UnknownName or HrsegError.
    """
    return read(Recipe, "recipe", name, overrides)


def recipe_of(settings: Any, what: str) -> Recipe:
    """A recipe from the output of ``model_dump``, as stored in a run folder."""
    return checked(Recipe, settings, what)


def recipe_names() -> list[str]:
    """Names of the recipes shipped with hrseg."""
    return names("recipe")
