"""Training views: the same images, order and windows for the same seed, whoever asks; small copies that stay true."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.index import Index, build_index
from hrseg_cli.data.pixels import read_image
from hrseg_cli.data.samples import load
from hrseg_cli.data.views import Decoded, Images, cache_longest, crop_window, epoch_order, load_scene
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import BinarizeRule

MINI = Path(__file__).parent.parent / "golden" / "mini"


# ---- images ----


@pytest.mark.parametrize("spec", ["LVIS:split=train,stuff=1", "SBD", "GrabCut", "dir"])
def test_an_image_comes_with_all_its_objects(spec: str, tmp_path: Path) -> None:
    """From a list and from an index alike, and as they are loaded one by one."""
    rule: BinarizeRule = "void128" if spec == "dir" else "auto"  # which cannot tell all of RITM's values apart
    refs = open_dataset(spec, root=MINI, binarize=rule)
    listed = Images(refs)
    index = Index(
        build_index(spec, root=MINI, binarize=rule, out=tmp_path / "i.jsonl").path, folder=refs[0].image.parents[1]
    )
    if "LVIS" in spec:
        index = Index(index.path, folder=refs[0].image.parents[2])
    indexed = Images(index)
    assert len(listed) == len(indexed) == len({ref.image for ref in refs})
    assert [ref for k in range(len(listed)) for ref in listed[k]] == refs
    for k in range(len(listed)):
        assert [ref.id for ref in indexed[k]] == [ref.id for ref in listed[k]]
        scene = load_scene(listed[k])
        alone = [load(ref) for ref in listed[k]]
        assert np.array_equal(scene.image, alone[0].image)
        assert np.array_equal(scene.truths, np.stack([sample.truth for sample in alone]))
    assert listed[-1] == listed[len(listed) - 1]


def test_drawn_images_are_scenes_too() -> None:
    images = Images(open_dataset("procedural:count=3,size=128"))
    assert len(images) == 3
    assert load_scene(images[2]).truths.shape[0] == 1


def test_decoded_files_are_kept_up_to_a_limit(tmp_path: Path) -> None:
    """What does not fit is read again, and what is kept cannot be changed by accident."""
    for name, side in (("a", 20), ("b", 30)):
        solid(tmp_path / "images" / f"{name}.png", 9, (side, side))
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(side, dtype=np.uint8) * 255).save(tmp_path / "masks" / f"{name}.png")
    first, second = (images for images in Images(open_dataset(str(tmp_path))))
    decoded = Decoded(20 * 20 * 4)
    before = [load_scene(refs, decoded) for refs in (first, second)]
    assert decoded.size == 20 * 20 * 4
    for name, side in (("a", 20), ("b", 30)):
        solid(tmp_path / "images" / f"{name}.png", 200, (side, side))
    again = load_scene(first, decoded)
    assert np.array_equal(again.image, before[0].image)
    assert np.array_equal(again.truths, before[0].truths)
    assert load_scene(second, decoded).image.max() == 200
    assert before[1].image.max() == 9
    with pytest.raises(ValueError, match="read-only"):
        again.image[:] = 0


# ---- order ----


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(0, 200),
    st.integers(0, 5),
    st.integers(0, 3),
    st.booleans(),
)
def test_an_epoch_gives_each_part_its_share(sizes: list[int], count: int, seed: int, epoch: int, weigh: bool) -> None:
    weights = [k + 1.0 for k in range(len(sizes))] if weigh else None
    order = epoch_order(sizes, count, seed=seed, epoch=epoch, weights=weights)
    assert np.array_equal(order, epoch_order(sizes, count, seed=seed, epoch=epoch, weights=weights))
    assert order.shape == (count, 2)
    shares = np.array(weights or sizes) / sum(weights or sizes) * count
    for part, size in enumerate(sizes):
        chosen = order[order[:, 0] == part, 1]
        assert abs(len(chosen) - shares[part]) < 1
        times = np.bincount(chosen, minlength=size)
        assert len(times) == size
        assert times.max() - times.min() <= 1  # none again before all have come


def test_epochs_and_seeds_differ_and_parts_are_mixed() -> None:
    orders = [epoch_order([50, 50], 100, seed=s, epoch=e).tolist() for s, e in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    halves = np.array(orders[0])[:50, 0]
    assert 10 < halves.sum() < 40
    assert epoch_order([5, 0], 20, seed=0, epoch=0, weights=[1, 0])[:, 0].sum() == 0


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0], [1.0, 1.0]])
def test_weights_that_cannot_be_are_refused(weights: list[float]) -> None:
    with pytest.raises(HrsegError):
        epoch_order([3, 0], 5, seed=0, epoch=0, weights=weights)


# ---- windows ----


@given(st.data())
def test_a_window_lies_in_its_image_and_holds_the_pixel(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    crop = data.draw(st.tuples(st.integers(1, 400), st.integers(1, 400)))
    around = data.draw(st.none() | st.tuples(st.integers(0, size[0] - 1), st.integers(0, size[1] - 1)))
    seed, epoch, step = (data.draw(st.integers(0, 10**6)) for _ in range(3))
    window = crop_window(seed, epoch, step, size, crop, scale=(0.75, 1.4), around=around)
    assert window == crop_window(seed, epoch, step, size, crop, scale=(0.75, 1.4), around=around)
    cut = np.zeros(size)[window.slices]
    assert cut.shape == (window.height, window.width)
    for axis in (0, 1):
        assert min(size[axis], round(crop[axis] / 1.4)) <= max(1, cut.shape[axis]) <= round(crop[axis] / 0.75)
        if around:
            assert 0 <= around[axis] - window[axis] < cut.shape[axis]


def test_windows_reach_every_place_evenly() -> None:
    tops = [crop_window(0, 0, step, (20, 20), (11, 11)).top for step in range(2000)]
    assert set(tops) == set(range(10))
    assert np.bincount(tops).min() > 140


def test_windows_do_not_depend_on_who_makes_them() -> None:
    """A second process that makes every other step makes what one makes alone."""
    code = (
        "import sys; from hrseg_cli.data.views import crop_window, epoch_order\n"
        "worker = int(sys.argv[1])\n"
        "order = epoch_order([7, 9], 12, seed=4, epoch=2)\n"
        "for k in range(worker, 12, 2): print(k, *order[k], *crop_window(4, 2, k, (50, 60), (20, 20)))\n"
    )
    theirs = subprocess.run([sys.executable, "-c", code, "1"], capture_output=True, text=True).stdout.splitlines()
    order = epoch_order([7, 9], 12, seed=4, epoch=2)
    alone = [" ".join(map(str, (k, *order[k], *crop_window(4, 2, k, (50, 60), (20, 20))))) for k in range(12)]
    assert theirs == alone[1::2]


# ---- smaller copies ----


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A wide image of two objects, a tall one in a sub-folder, and one that is small already."""
    folder = tmp_path / "large"
    for stem, (height, width), count in (("wide", (200, 401), 2), ("s/tall", (300, 90), 1), ("small", (40, 60), 1)):
        row, col = np.mgrid[0:height, 0:width]
        image = np.stack([row * 255 // height, col * 255 // width, 128 + 0 * row], axis=2).astype(np.uint8)
        path = folder / f"images/{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        for k in range(count):
            mask = np.zeros((height, width), np.uint8)
            mask[height // 4 : height // 2, width // 4 + 20 * k : width // 2 + 20 * k] = 255
            mask[height // 2 : height // 2 + 10] = 128
            path = folder / f"masks/{stem}{f'_{k}' if count > 1 else ''}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return folder


def test_small_copies_have_the_same_ids_and_truth(large: Path, tmp_path: Path) -> None:
    refs = open_dataset(f"set={large}")
    seen: list[tuple[int, int]] = []
    cache = cache_longest(refs, tmp_path / "cache", 100, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    copies = open_dataset(f"set={cache}")
    assert [ref.id for ref in copies] == [ref.id for ref in refs] == ["s/tall", "small", "wide_0", "wide_1"]
    for copy, ref in zip(copies, refs, strict=True):
        small, full = load(copy), load(ref)
        assert max(small.truth.shape) == min(100, max(full.truth.shape))
        factor = full.truth.shape[0] / small.truth.shape[0]
        for value in (1, -1):  # the same share of the image, and in the same place
            rows, cols = np.nonzero(small.truth == value)
            wanted = np.nonzero(full.truth == value)
            assert abs(np.mean(wanted[0]) / factor - rows.mean()) < 1
            assert abs(np.mean(wanted[1]) / factor - cols.mean()) < 1
            assert (small.truth == value).mean() == pytest.approx((full.truth == value).mean(), abs=0.012)
        assert np.abs(small.image.mean((0, 1)) - full.image.mean((0, 1))).max() < 2
    assert (cache / "images/small.png").read_bytes() == (large / "images/small.png").read_bytes()
    assert read_image(cache / "images/wide.jpg").shape == (50, 100, 3)


def test_small_copies_of_sets_with_ids_in_a_file(tmp_path: Path) -> None:
    for spec in ("LVIS:split=train", "SBD"):
        refs = open_dataset(spec, root=MINI)
        copies = open_dataset(str(cache_longest(refs, tmp_path / spec[:3], 30)))
        assert [ref.id for ref in copies] == [ref.id for ref in refs]
        assert all(load(ref).truth.shape == (20, 30) for ref in copies)


def test_a_cache_is_not_made_twice_and_not_kept_when_files_change(large: Path, tmp_path: Path) -> None:
    refs = open_dataset(str(large))
    cache = cache_longest(refs, tmp_path / "cache", 100)
    times = {path: path.stat().st_mtime_ns for path in cache.rglob("*g")}
    cache_longest(refs, cache, 100)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*g")} == times
    os.utime(large / "masks/small.png", ns=(1, 1))
    cache_longest(refs, cache, 100)
    assert all(path.stat().st_mtime_ns > time for path, time in times.items())


def test_another_rule_makes_other_copies(tmp_path: Path) -> None:
    """The files are the same, and so are the ids; the masks are not."""
    for part, pixels in (("images", np.zeros((40, 60, 3), np.uint8)), ("masks", np.zeros((40, 60), np.uint8))):
        (tmp_path / "set" / part).mkdir(parents=True)
        pixels[:20] = 255
        pixels[20:30] = 128
        Image.fromarray(pixels).save(tmp_path / "set" / part / "a.png")
    areas = []
    for rule in ("void128", "nonzero"):
        refs = open_dataset(str(tmp_path / "set"), binarize=rule)
        copies = open_dataset(str(cache_longest(refs, tmp_path / "cache", 30)))
        areas.append(int((load(copies[0]).truth == 1).sum()))
    assert areas == [300, 450]


@pytest.mark.parametrize("what", ["another set", "another size", "another drawing", "no stamp of ours"])
def test_a_cache_of_something_else_is_refused_and_kept(large: Path, tmp_path: Path, what: str) -> None:
    """Two sets that are given one folder would wipe each other in turn."""
    refs = open_dataset(str(large))
    cache = tmp_path / "cache"
    if what == "another drawing":  # the same ids, for a kind of object has its turn whatever the seed
        refs = open_dataset("procedural:count=1,size=128")
        wanted = open_dataset("procedural:count=1,size=256")
        assert [ref.id for ref in wanted] == [ref.id for ref in refs]
    else:
        wanted = refs[:-1] if what == "another set" else refs
    cache_longest(refs, cache, 100)
    if what == "no stamp of ours":
        (cache / "cache.json").write_text("[]")
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    with pytest.raises(HrsegError) as caught:
        cache_longest(wanted, cache, 50 if what == "another size" else 100)
    assert str(caught.value) == f"{cache}: contains a cache of another dataset or size; use another folder"
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before


def test_a_dead_link_among_the_originals_is_named(large: Path, tmp_path: Path) -> None:
    refs = open_dataset(str(large))
    (large / "images/wide.png").unlink()
    (large / "images/wide.png").symlink_to("gone")
    with pytest.raises(HrsegError, match=r"images/wide\.png: no such file"):
        cache_longest(refs, tmp_path / "cache", 100)


def test_a_folder_of_something_else_is_left_alone(large: Path, tmp_path: Path) -> None:
    before = sorted(large.rglob("*"))
    with pytest.raises(HrsegError, match="not empty and not a cache"):
        cache_longest(open_dataset(str(large)), large, 100)
    assert sorted(large.rglob("*")) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(HrsegError, match="cannot be written"):
        cache_longest(open_dataset(str(large)), tmp_path / "file/cache", 100)


def test_a_broken_original_is_named_and_the_rest_is_kept(large: Path, tmp_path: Path) -> None:
    whole = (large / "images/wide.png").read_bytes()
    refs = open_dataset(str(large))
    stat = (large / "images/wide.png").stat()
    (large / "images/wide.png").write_bytes(whole[:100] + bytes(len(whole) - 100))
    os.utime(large / "images/wide.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(HrsegError, match=r"wide\.png: cannot be read"):
        cache_longest(refs, tmp_path / "cache", 100, workers=1)
    assert not (tmp_path / "cache/pairs.csv").exists()
    kept = (tmp_path / "cache/images/s/tall.jpg").stat().st_mtime_ns
    (large / "images/wide.png").write_bytes(whole)
    os.utime(large / "images/wide.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(open_dataset(str(cache_longest(refs, tmp_path / "cache", 100)))) == 4
    assert (tmp_path / "cache/images/s/tall.jpg").stat().st_mtime_ns == kept


def test_an_object_too_thin_for_the_copy_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part, values in (("images", np.full((300, 300), 90, np.uint8)), ("masks", np.zeros((300, 300), np.uint8))):
        (tmp_path / f"set/{part}").mkdir(parents=True)
        if part == "masks":
            values[7, 7] = 255
        Image.fromarray(values).save(tmp_path / f"set/{part}/x.png")
        Image.fromarray(np.full((300, 300), 255, np.uint8)).save(tmp_path / f"set/{part}/y.png")
    copies = open_dataset(str(cache_longest(open_dataset(str(tmp_path / "set")), tmp_path / "cache", 30)))
    assert [ref.id for ref in copies] == ["y"]
    assert "object 'x' vanishes at 30 pixels" in caplog.text


def test_killed_while_writing_copies(large: Path, tmp_path: Path) -> None:
    """The same command ends with the same bytes."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from hrseg_cli.data.datasets import open_dataset\nfrom hrseg_cli.data.views import cache_longest\n"
        "def stop(done, total):\n    if done == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache_longest(open_dataset(sys.argv[1]), Path(sys.argv[2]), 100, workers=1, progress=stop)\n"
    )
    cache = tmp_path / "cache"
    killed = subprocess.run([sys.executable, "-c", code, large, cache])
    assert killed.returncode == -signal.SIGKILL
    assert not (cache / "pairs.csv").exists()
    refs = open_dataset(str(large))
    cache_longest(refs, cache, 100)
    whole = cache_longest(refs, tmp_path / "whole", 100)
    for path in (p for p in whole.rglob("*") if p.is_file()):
        assert (cache / path.relative_to(whole)).read_bytes() == path.read_bytes()


# ---- whose copy it is, and where it lies ----


def solid(path: Path, value: int, size: tuple[int, int] = (90, 120)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def half(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 45, 0).repeat(120, 1)).save(path)


def coco_file(path: Path, **objects: int) -> Path:
    """A COCO file: file_name, with "__" for a dot, -> number of objects."""
    names = [name.replace("__", ".") for name in objects]
    owners = [number for number, count in enumerate(objects.values()) for _ in range(count)]
    box = [[10, 10, 100, 10, 100, 80, 10, 80]]
    record = {
        "images": [{"id": k, "file_name": name, "height": 90, "width": 120} for k, name in enumerate(names)],
        "annotations": [{"id": k, "image_id": owner, "segmentation": box} for k, owner in enumerate(owners)],
    }
    path.write_text(json.dumps(record))
    return path


def seen(folder: Path) -> dict[str, int]:
    """Last part of an object's id -> grey value of its image."""
    return {ref.id.rpartition("/")[2]: int(load(ref).image.mean()) for ref in open_dataset(str(folder))}


@pytest.mark.parametrize("longest", [64, 500], ids=["smaller", "as they are"])
@pytest.mark.parametrize("count", [1, 2])
def test_images_of_one_stem_do_not_share_a_copy(count: int, longest: int, tmp_path: Path) -> None:
    """One object each or several, in a folder or not, and also where letter case alone tells them apart."""
    for name, value in (("a.png", 50), ("a.bmp", 100), ("A.png", 150), ("a_1.png", 200)):
        solid(tmp_path / name, value)
    path = coco_file(tmp_path / "i.json", a__png=count, a__bmp=count, A__png=count, a_1__png=count)
    values = [value for value in (50, 100, 150, 200) for _ in range(count)]
    stems = [stem for stem in ("a", "a", "A", "a_1") for _ in range(count)]
    cache = cache_longest(open_dataset(str(path)), tmp_path / "cache", longest)
    assert seen(cache) == {f"{stem}#{k}": value for k, (stem, value) in enumerate(zip(stems, values, strict=True))}
    lines = (cache / "pairs.csv").read_text().lower().splitlines()[1:]
    masks = [line.partition(",")[2] for line in lines]
    assert len(set(masks)) == len(masks) == 4 * count
    assert len({line.partition(",")[0] for line in lines}) == 4


def test_two_processes_make_the_copies_of_one_stem_at_once(tmp_path: Path) -> None:
    """The second waits, says so, and both leave what one alone would."""
    names = [f"{stem}.{kind}" for stem in "abcdef" for kind in ("png", "bmp")]
    for number, name in enumerate(names):
        solid(tmp_path / name, 10 * number)
    path = coco_file(tmp_path / "i.json", **{name.replace(".", "__"): 1 for name in names})
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom hrseg_cli.data.datasets import open_dataset\n"
        "from hrseg_cli.data.views import cache_longest\n"
        "refs, slow = open_dataset(sys.argv[1]), lambda *_: time.sleep(0.1)\n"
        "cache_longest(refs, Path(sys.argv[2]), 64, wait=True, progress=slow)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, path, tmp_path / "cache"], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert any("cache: waiting for process" in text for text in told), told
    assert seen(tmp_path / "cache") == {f"{name[0]}#{k}": 10 * k for k, name in enumerate(names)}


def test_copies_of_an_earlier_layout_are_made_anew(large: Path, tmp_path: Path) -> None:
    """They may hold one image for two of a stem, and nothing in them tells."""
    refs = open_dataset(str(large))
    cache = cache_longest(refs, tmp_path / "cache", 100)
    stamp = json.loads((cache / "cache.json").read_text())
    del stamp["version"], stamp["folders"]
    (cache / "cache.json").write_text(json.dumps(stamp))
    (cache / "images/small.png").write_bytes((large / "images/s/tall.png").read_bytes())
    cache_longest(refs, cache, 100)
    assert (cache / "images/small.png").read_bytes() == (large / "images/small.png").read_bytes()


def test_a_list_that_leads_out_of_its_folder_gets_copies_inside(tmp_path: Path) -> None:
    """Pictures elsewhere are fine; their copies and those of their masks lie in the cache, and nothing else changes."""
    for place in ("photos/x.png", "more/x.png"):
        solid(tmp_path / place, 90 if "photos" in place else 180)
        half(tmp_path / place.replace("x.png", "mask_x.png"))
    (tmp_path / "deep/set").mkdir(parents=True)
    rows = "".join(f"../../{place}/x.png,../../{place}/mask_x.png\n" for place in ("photos", "more"))
    (tmp_path / "deep/set/pairs.csv").write_text(f"image,mask\n{rows}")
    victims = [tmp_path / name for name in ("deep/photos/x.png", "photos/x.jpg", "more/x.jpg", "deep/more/x.png")]
    for victim in victims:
        victim.parent.mkdir(exist_ok=True)
        victim.write_text("precious")
    cache = cache_longest(open_dataset(str(tmp_path / "deep/set")), tmp_path / "deep/cache/here", 64)
    assert [victim.read_text() for victim in victims] == ["precious"] * 4
    values = {ref.id: int(load(ref).image.mean()) for ref in open_dataset(str(cache))}
    assert values == {"more/x": 180, "photos/x": 90}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"set", "cache", "photos", "more"}


@pytest.mark.parametrize("file_name", ["../../x.png", "{root}/x.png", "a/../../../x.png", "..\\..\\x.png"])
def test_a_coco_name_that_leads_out_gets_copies_inside(file_name: str, tmp_path: Path) -> None:
    (tmp_path / "in/set/a").mkdir(parents=True)
    solid(tmp_path / "x.png", 90)
    path = coco_file(tmp_path / "in/set/i.json", **{file_name.format(root=tmp_path): 2})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    cache = cache_longest(open_dataset(str(path)), tmp_path / "in/set/i-64", 64)
    assert set(seen(cache)) == {"x#0", "x#1"}
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(cache) or path.name == ".i-64.lock" for path in new)


@pytest.mark.parametrize("bad", ["../../victim", "/victim", "a/../../../victim", "a\0b", "n" * 300])
@pytest.mark.parametrize("count", [1, 2])
def test_an_id_that_leads_out_is_refused_whoever_made_it(bad: str, count: int, large: Path, tmp_path: Path) -> None:
    """An index is a file as well, and may say anything."""
    victim = tmp_path / "victim.png"
    victim.write_text("precious")
    refs = [replace(ref, id=bad + str(k)) for k, ref in enumerate(open_dataset(str(large))[-count:])]
    refs[0] = replace(refs[0], id=bad)
    with pytest.raises(HrsegError, match="the name"):
        cache_longest(refs, tmp_path / "deep/cache", 100)
    assert victim.read_text() == "precious"
    assert not any((tmp_path / "deep/cache").rglob("*.png"))


@pytest.mark.parametrize("part", ["images", "masks", "masks/s"])
def test_a_link_in_the_cache_is_not_followed_out(part: str, large: Path, tmp_path: Path) -> None:
    refs = open_dataset(str(large))
    cache = cache_longest(refs, tmp_path / "cache", 100)
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(cache / part)
    shutil.rmtree(cache / "images", ignore_errors=True)
    (cache / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HrsegError, match="link that points outside"):
        cache_longest(refs, cache, 100)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_set_elsewhere_with_the_same_ids_does_not_replace_the_copies(large: Path, tmp_path: Path) -> None:
    shutil.copytree(large, tmp_path / "other" / "large")
    cache = cache_longest(open_dataset(str(large)), tmp_path / "cache", 100)
    with pytest.raises(HrsegError, match="contains a cache of another dataset or size"):
        cache_longest(open_dataset(str(tmp_path / "other" / "large")), cache, 100)
