"""CPU time of a click by part, compared with plain implementations of the same parts, and of the networks' forms.

    python benchmarks/session_speed.py                                    one thread, Markdown on stdout
    python benchmarks/session_speed.py --model clicknet_m --model h18s --rounds 9 --sizes 1024x1024,4000x6000

First table: the network at 416x416, as it was trained (plain: normalisation folded, channels last) and in its form for
inference (fast). "later" is a click on the same crop, "first" and "changed crop" also encode the image.
Second table: a whole click of a session under the protocol fast, from the click to the mask at full size.
Third table: everything around the network, for an object that fills a third of each side of the image. Plain: the
probabilities are resized to the whole image, thresholded there twice (the mask, the next crop's box), and crops are
resized by PyTorch. Both must give the same mask, box and crops.

All alternate in one process, so that other load affects all alike; reported are least and median CPU milliseconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.engine import views
from hrseg_cli.engine.answers import Answer
from hrseg_cli.engine.devices import one_thread
from hrseg_cli.engine.fast import fast
from hrseg_cli.engine.session import Session
from hrseg_cli.engine.views import Box
from hrseg_cli.interaction import Click
from hrseg_cli.models.parts.folding import folded
from hrseg_cli.recipe import load_protocol

SIDE, THRESHOLD, BOX_THRESHOLD = 416, 0.49, 0.5
Calls = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", default="480x640,1024x1024,2048x3072,4000x6000")
    options = parser.parse_args()
    one_thread()
    with torch.inference_mode():
        networks(options.model or ["clicknet_m", "h18s"], options.rounds)
        print()
        sizes = [(int(h), int(w)) for h, w in (size.split("x") for size in options.sizes.split(","))]
        clicks(options.model or ["clicknet_m", "h18s"], sizes, options.rounds)
        print()
        surroundings(sizes, options.rounds)


def networks(names: list[str], rounds: int) -> None:
    calls: Calls = {}
    image, previous = torch.rand(1, 3, SIDE, SIDE), torch.rand(1, 1, SIDE, SIDE)
    points = torch.tensor([[[200.0, 180, 0], [150, 220, 1], [10, 20, 2], [-1, -1, -1]]]).double()
    for name in names:
        model, _ = load_model(name)
        forms = {"plain": folded(model).to(memory_format=torch.channels_last), "fast": model.for_inference()}  # type: ignore[call-overload]
        for form, network in forms.items():
            features = network.encode(image)
            calls[f"{name}, {form}, encode"] = lambda network=network: network.encode(image)
            calls[f"{name}, {form}, later"] = lambda network=network, features=features: network.decode(
                features, previous, points
            )
    found = in_turn(calls, rounds)
    print("| network, 416x416 | first, changed crop: ms least, median | later click: ms least, median |\n|---|---|---|")
    for name in names:
        for form in ("plain", "fast"):
            encode, later = (found[f"{name}, {form}, {part}"] for part in ("encode", "later"))
            both = [a + b for a, b in zip(encode, later, strict=True)]
            print(f"| {name}, {form} | {both[0]:.0f}, {both[1]:.0f} | {later[0]:.0f}, {later[1]:.0f} |")


def clicks(names: list[str], sizes: list[tuple[int, int]], rounds: int) -> None:
    models = {name: fast(load_model(name)[0]) for name in names}
    print("| image | network | first | crop changed | crop unchanged: ms least, median |\n|---|---|---|---|---|")
    for height, width in sizes:
        image = cv2.resize(np.random.default_rng(0).integers(0, 70, (30, 40, 3), np.uint8), (width, height))
        cv2.ellipse(image, (width // 2, height // 2), (width // 5, height // 5), 30, 0, 360, (220, 160, 60), -1)
        spent: dict[str, dict[str, list[float]]] = {name: {"first": [], "changed": [], "same": []} for name in names}
        for number in range(-(-rounds // 3) + 1):
            sessions = {name: Session(model, image, load_protocol("fast"), undo=0) for name, model in models.items()}
            for step in range(4):
                for name, session in sessions.items():
                    click = Click(height // 2 + 3 * step, width // 2 - 5 * step, True)
                    before, started = session.state.box, time.process_time()
                    session.click(click)
                    took = 1000 * (time.process_time() - started)
                    kind = "first" if not step else "same" if session.state.box == before else "changed"
                    if number:
                        spent[name][kind].append(took)
        for name, kinds in spent.items():
            cells = (f"{min(some):.0f}, {median(some):.0f}" if some else "-" for some in kinds.values())
            print(f"| {height}x{width} | {name} | {' | '.join(cells)} |", flush=True)


def surroundings(sizes: list[tuple[int, int]], rounds: int) -> None:
    print("| image | part | plain: ms least, median | ours: ms least, median | ratio of least |\n|---|---|---|---|---|")
    for size in sizes:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        for name, share in (("first click, whole image", 1.0), ("later click, crop", 0.47)):
            box = Box(0, round(size[0] * share) - 1, 0, round(size[1] * share) - 1)
            ours, plain = parts(image, box)
            check(ours, plain)
            alternating = {
                f"{way} {part}": call
                for way, calls in (("ours", ours), ("plain", plain))
                for part, call in calls.items()
            }
            found = in_turn(alternating, rounds)
            for part in ours:
                a, b = found[f"plain {part}"], found[f"ours {part}"]
                print(
                    f"| {size[0]}x{size[1]} | {name}: {part} | {a[0]:.1f}, {a[1]:.1f} | {b[0]:.1f}, {b[1]:.1f} "
                    f"| {b[0] / a[0]:.2f} |",
                    flush=True,
                )


def parts(image: np.ndarray, box: Box) -> tuple[Calls, Calls]:
    """Our implementations of each part, and plain ones."""
    size = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    inner = views.crop_size(box, SIDE)
    patch = ellipse(*inner)
    answer, whole = Answer(patch, box, size), pasted(patch, box, size)
    ours: Calls = {
        "mask": lambda: Answer(patch, box, size).above(THRESHOLD),
        "box of the object": lambda: answer.extent(BOX_THRESHOLD),
        "crop of the previous mask": lambda: answer.crop(box, inner),
        "crop of the image": lambda: views.crop(pixels, box, inner),
    }
    plain: Calls = {
        "mask": lambda: pasted(patch, box, size)[0, 0].numpy() > np.float32(THRESHOLD),
        "box of the object": lambda: views.mask_box(torch.from_numpy(whole[0, 0].numpy() > np.float32(BOX_THRESHOLD))),
        "crop of the previous mask": lambda: resized(whole, box, inner),
        "crop of the image": lambda: resized(pixels, box, inner),
    }
    return ours, plain


def ellipse(height: int, width: int) -> Tensor:
    """(1, 1, H, W): probabilities of an object with a soft, slightly noisy outline."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.sigmoid(12 * (0.7 - torch.hypot(x, y)) + 0.1 * torch.rand(height, width))[None, None]


def pasted(patch: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    whole = torch.from_numpy(np.zeros((1, 1, *size), np.float32))
    inside = F.interpolate(patch, size=box.size, mode="bilinear", align_corners=True)
    whole[:, :, box.top : box.bottom + 1, box.left : box.right + 1] = inside
    return whole


def resized(x: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    window = views.unit(x[:, :, box.top : box.bottom + 1, box.left : box.right + 1])
    return F.interpolate(window, size=size, mode="bilinear", align_corners=True)


def check(ours: Calls, plain: Calls) -> None:
    assert np.array_equal(ours["mask"](), plain["mask"]())  # type: ignore[arg-type]
    assert ours["box of the object"]() == plain["box of the object"]()
    for part in ("crop of the previous mask", "crop of the image"):
        torch.testing.assert_close(ours[part](), plain[part](), atol=1e-6, rtol=0)


def in_turn(calls: Calls, rounds: int) -> dict[str, tuple[float, float]]:
    """Least and median CPU milliseconds of each call; the first round is a warm-up."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if number:
                spent[name].append(1000 * (time.process_time() - started))
    return {name: (min(values), median(values)) for name, values in spent.items()}


if __name__ == "__main__":
    main()
