"""The index: what is broken is named, and a fresh one spares opening index masks without changing anything."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrseg_cli.data import samples
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.index import Index, build_index, is_fresh
from hrseg_cli.data.samples import fingerprint, list_masks, load, load_with_rule
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import BinarizeRule

MINI = Path(__file__).parent.parent / "golden" / "mini"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images with index masks: two objects, void and one object, background only."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for stem, ids in {"a": (3, 12), "b": (255, 1), "c": ()}.items():
        mask = np.zeros((10, 16), np.uint8)
        for k, value in enumerate(ids):
            mask[2 + 4 * k : 4 + 4 * k, 3:9] = value
        Image.fromarray(mask).save(tmp_path / f"masks/{stem}.png")
        Image.fromarray(np.dstack([mask] * 3)).save(tmp_path / f"images/{stem}.jpg")
    return tmp_path


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_line_per_object_in_dataset_order(folder: Path) -> None:
    seen = []
    summary = build_index(folder, instances=True, progress=lambda done, total: seen.append((done, total)))
    assert (summary.images, summary.objects, summary.problems) == (2, 3, [])
    assert summary.rules == {"instance": 3}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    head, *objects = lines(folder / "index.jsonl")
    assert head["version"] == 1
    assert [line["id"] for line in objects] == [ref.id for ref in open_dataset(str(folder), instances=True)]
    assert objects[2] == {
        "id": "b#1",
        "image": "images/b.jpg",
        "mask": "masks/b.png",
        "instance": 1,
        "height": 10,
        "width": 16,
        "area": 12,
        "void": 12,
        "rule": "instance",
    }


def test_a_fresh_index_spares_opening_masks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = open_dataset(str(folder), instances=True)
    build_index(folder, instances=True)
    opened = []

    def read_mask(path: Path) -> samples.MaskPixels:
        opened.append(path.name)
        return samples.MaskPixels(np.zeros((10, 16), np.uint8))

    monkeypatch.setattr(samples, "read_mask", read_mask)
    assert open_dataset(str(folder), instances=True) == without
    assert opened == ["c.png"]  # a mask without objects has no line


@pytest.mark.parametrize("damage", ["changed mask", "new file", "touched", "torn", "not json", "empty"])
def test_a_stale_or_damaged_index_is_ignored(folder: Path, damage: str) -> None:
    index = build_index(folder, instances=True).path
    expected = ["a#3", "a#12", "b#1"]
    if damage == "changed mask":
        Image.fromarray(np.full((10, 16), 9, np.uint8)).save(folder / "masks/a.png")
        expected = ["a#9", "b#1"]
    elif damage == "new file":
        (folder / "images/a.jpg").rename(folder / "images/d.jpg")
        (folder / "masks/a.png").rename(folder / "masks/d.png")
        expected = ["b#1", "d#3", "d#12"]
    elif damage == "touched":
        os.utime(folder / "masks/a.png", ns=(1, 1))
        index.write_text(index.read_text().replace('"instance": 12', '"instance": 99'))
    elif damage == "torn":
        index.write_text(index.read_text()[:-30])
    else:
        index.write_text("" if damage == "empty" else "]\n")
    assert [ref.id for ref in open_dataset(str(folder), instances=True)] == expected


def test_broken_files_are_each_one_line_and_the_good_are_kept(folder: Path) -> None:
    for stem in ("cut", "size", "void", "ok"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 16, 3), np.uint8)).save(
            folder / f"images/{stem}.png"
        )
        mask = np.full((10, 15 if stem == "size" else 16), 128 if stem == "void" else 255, np.uint8)
        Image.fromarray(mask).save(folder / f"masks/{stem}.png")
    cut = folder / "images/cut.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "masks/c.png").write_bytes(b"")
    summary = build_index(folder, binarize="void128", workers=2)
    broken = {"a": "no object pixel", "b": None, "c": "an empty file", "cut": "cannot be read", "size": "15x10"}
    broken["void"] = "no object pixel"
    expected = [(stem, reason) for stem, reason in broken.items() if reason]
    assert len(summary.problems) == len(expected)
    for problem, (stem, reason) in zip(summary.problems, expected, strict=True):
        assert f"{stem}.png" in problem
        assert reason in problem
        assert "\n" not in problem
    assert [line["id"] for line in lines(summary.path)[1:]] == ["b", "ok"]


def test_an_index_never_hides_an_object(folder: Path) -> None:
    """An object lost under another mask's void stays in the dataset, so that loading it names the fault."""
    void = np.zeros((10, 16), np.uint8)
    void[0:5], void[9] = 255, 2
    Image.fromarray(void).save(folder / "masks/a_1.png")
    without = [ref.id for ref in open_dataset(str(folder), instances=True)]
    summary = build_index(folder, instances=True)
    assert len(summary.problems) == 1
    assert "id 3" in summary.problems[0]
    assert [ref.id for ref in open_dataset(str(folder), instances=True)] == without == ["a#3", "a#12", "a_1#2", "b#1"]


def test_a_folder_that_cannot_be_written_is_indexed_elsewhere(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "index.jsonl"
    before = sorted(folder.rglob("*"))
    assert build_index(folder, instances=True, out=out).path == out
    assert [path for path in sorted(folder.rglob("*")) if out.parent not in (path, *path.parents)] == before
    assert lines(out)[1]["mask"] == "masks/a.png"
    (folder / "file").write_text("")
    with pytest.raises(HrsegError, match="`out`"):
        build_index(folder, instances=True, out=folder / "file" / "index.jsonl")


def test_the_embedded_set_has_nothing_to_index() -> None:
    with pytest.raises(HrsegError, match="no files to index"):
        build_index("procedural:count=1")


# ---- read lazily ----


def test_an_index_is_the_dataset(folder: Path) -> None:
    index = Index(build_index(folder, instances=True).path, folder=folder)
    refs = open_dataset(str(folder), instances=True)
    assert len(index) == 3
    assert [index[k] for k in range(3)] == refs == index[:] == list(index)
    assert index[-1] == refs[-1]
    assert index[1:2] == refs[1:2]
    assert index.record(1)["area"] == 12
    with pytest.raises(IndexError):
        index[3]
    assert index.image_starts().tolist() == [0, 2, 3]
    assert list(pickle.loads(pickle.dumps(index))) == refs


def test_an_index_moves_with_its_dataset(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    build_index(folder, instances=True)
    moved = tmp_path_factory.mktemp("root") / "elsewhere"
    shutil.copytree(folder, moved)
    index = Index(moved / "index.jsonl", name="moved")
    assert {ref.dataset for ref in index} == {"moved"}
    assert all(ref.image.is_relative_to(moved) and load(ref).truth.any() for ref in index)


@pytest.mark.parametrize("spec", ["GrabCut", "SBD:split=train", "VOC", "LVIS:split=train,stuff=1", "dir"])
def test_what_an_index_gives_back_is_what_was_listed(spec: str, tmp_path: Path) -> None:
    """Hierarchy, stuff, void of neighbours and the label rule survive; grey values read the same."""
    rule: BinarizeRule = "void128" if spec == "dir" else "auto"  # which cannot tell all of RITM's values apart
    listing = list_masks(spec, root=MINI, binarize=rule)
    refs = open_dataset(spec, root=MINI, binarize=rule)
    index = Index(build_index(listing, out=tmp_path / "i.jsonl").path, folder=listing.folder)
    assert list(index) == refs
    for ref, own in zip(index, refs, strict=True):
        (sample, used), (expected, rule) = load_with_rule(ref), load_with_rule(own)
        assert used == rule
        assert np.array_equal(sample.truth, expected.truth)


def test_splits_and_options_have_an_index_of_their_own() -> None:
    names = [list_masks(spec, root=MINI).index_file.name for spec in ("SBD", "SBD:split=train", "LVIS:split=train")]
    names.append(list_masks("LVIS:split=train,stuff=1", root=MINI).index_file.name)
    assert names == ["index.jsonl", "index-train.jsonl", "index-train.jsonl", "index-train-stuff-1.jsonl"]


def test_an_index_is_fresh_until_something_changes(folder: Path) -> None:
    listing = list_masks(str(folder), instances=True)
    assert not is_fresh(listing)
    build_index(listing)
    assert is_fresh(listing)
    assert not is_fresh(list_masks(str(folder)))  # the same files, read in another way
    os.utime(folder / "masks/a.png", ns=(1, 1))
    assert not is_fresh(listing)
    (folder / "masks/a.png").write_bytes(b"")
    assert build_index(listing).problems
    assert not is_fresh(listing)  # there is something to tell
    (folder / "index.jsonl").write_text("[]\n")
    assert not is_fresh(listing)


@pytest.mark.parametrize("damage", ["missing", "of another index", "torn", "no array"])
def test_the_table_of_lines_is_made_again(folder: Path, damage: str) -> None:
    path = build_index(folder, instances=True).path
    table = folder / "index.lines.npy"
    whole = table.read_bytes()
    if damage == "missing":
        table.unlink()
    elif damage == "of another index":
        np.save(table, np.load(table) + 1)
    else:
        table.write_bytes(whole[:-20] if damage == "torn" else b"no array")
    index = Index(path)
    assert list(index) == open_dataset(str(folder), instances=True)
    assert table.read_bytes() == whole
    assert index.image_starts().tolist() == [0, 2, 3]


@pytest.mark.parametrize("content", ["", "{}\n", "[1]\n", '{"version": 2}\n', "not json\n", '{"version": 1}\n{"id"'])
def test_what_is_no_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.jsonl").write_text(content)
    with pytest.raises(HrsegError, match=r"index\.jsonl: not an index"):
        Index(tmp_path / "index.jsonl")
    with pytest.raises(HrsegError, match=r"gone\.jsonl: no such index"):
        Index(tmp_path / "gone.jsonl")


def test_a_broken_line_is_named_when_it_is_read(folder: Path) -> None:
    path = build_index(folder, instances=True).path
    path.write_bytes(path.read_bytes().replace(b'"width": 16', b'"width"  16'))
    with pytest.raises(HrsegError, match=r"index\.jsonl, object 0: not a valid index line"):
        Index(path)[0]


def test_an_empty_index_is_a_dataset_of_nothing(folder: Path) -> None:
    for stem in "ab":
        (folder / f"images/{stem}.jpg").unlink()
        (folder / f"masks/{stem}.png").unlink()
    index = Index(build_index(folder, instances=True).path)
    assert list(index) == []
    assert index.image_starts().tolist() == [0]


# ---- interrupted ----


@pytest.mark.parametrize(("torn", "left"), [(lambda c: c + b'{"id": "b', 2), (lambda c: c[:-1], 1), (lambda c: c, 2)])
def test_a_build_goes_on_where_it_was(folder: Path, tmp_path: Path, torn: Callable[[bytes], bytes], left: int) -> None:
    """What was done is not decoded again; an image whose last line is torn is."""

    class Stop(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == left:
            raise Stop

    whole = build_index(folder, instances=True, out=tmp_path / "whole/i.jsonl").path.read_bytes()
    with pytest.raises(Stop):
        build_index(folder, instances=True, out=tmp_path / "i.jsonl", progress=stop)
    part = tmp_path / "i.jsonl.part"
    kept = part.read_bytes()
    part.write_bytes(torn(kept))
    seen: list[int] = []
    path = build_index(
        folder, instances=True, out=tmp_path / "i.jsonl", progress=lambda done, _: seen.append(done)
    ).path
    assert seen[0] == (left if len(torn(kept)) < len(kept) else left + 1)
    assert path.read_bytes() == whole
    assert not part.exists()


@pytest.mark.parametrize("last", ["np.save", "os.fsync", "os.replace"])
def test_stopped_while_the_index_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    whole = build_index(folder, instances=True, out=tmp_path / "whole/i.jsonl").path

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"hrseg_cli.data.index.{last}", stop)
        with pytest.raises(KeyboardInterrupt):
            build_index(folder, instances=True, out=tmp_path / "half/i.jsonl")
    assert not (tmp_path / "half/i.jsonl").exists()
    build_index(folder, instances=True, out=tmp_path / "half/i.jsonl")
    for name in ("i.jsonl", "i.lines.npy"):
        assert (tmp_path / "half" / name).read_bytes() == (whole.parent / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "half").iterdir()) == ["i.jsonl", "i.lines.npy"]


def test_two_objects_of_one_id_are_named(folder: Path) -> None:
    """The object 3 of image 'a' and the image 'a#3' would share one line of the traces."""
    shutil.copy(folder / "images/b.jpg", folder / "images/a#3.jpg")
    shutil.copy(folder / "masks/b.png", folder / "masks/a#3.png")
    (folder / "pairs.csv").write_text(
        "image,mask,kind\nimages/a.jpg,masks/a.png,instance\nimages/a#3.jpg,masks/a#3.png,\n"
    )
    (problem,) = build_index(folder, binarize="gt128").problems
    assert problem == "masks/a#3.png: duplicate object 'a#3'; rename one file"
    head = lines(folder / "index.jsonl")[0]
    assert head["incomplete"] == ["masks/a#3.png"]
    assert not is_fresh(list_masks(str(folder), binarize="gt128"))  # so that it is told again


def test_two_builds_at_once_do_not_write_into_each_other(folder: Path, tmp_path: Path) -> None:
    """The second is refused while the first is at work, and the first ends with the bytes of one that was alone."""
    whole = build_index(folder, instances=True, out=tmp_path / "whole/i.jsonl").path
    refused: list[str] = []

    def meanwhile(done: int, _: int) -> None:
        with pytest.raises(HrsegError) as caught:
            build_index(folder, instances=True, out=tmp_path / "i.jsonl")
        refused.append(str(caught.value))

    path = build_index(folder, instances=True, out=tmp_path / "i.jsonl", progress=meanwhile).path
    assert len(refused) == 3
    assert all(text.startswith(f"{path}: in use by process {os.getpid()} (") for text in refused)
    assert path.read_bytes() == whole.read_bytes()
    assert build_index(folder, instances=True, out=path).path == path  # the lock is open again


def test_the_lock_is_no_part_of_the_dataset(folder: Path) -> None:
    before = list_masks(str(folder), instances=True)
    (folder / ".index.jsonl.hrseg-lock").touch()
    (folder / ".index.jsonl.0123abcd.hrseg-tmp").touch()
    assert list_masks(str(folder), instances=True) == before
    build_index(before)
    assert not list(folder.glob(".*"))
    after = list_masks(str(folder), instances=True)
    assert after == before
    assert fingerprint(folder, after.masks) == fingerprint(folder, before.masks)
    assert is_fresh(after)
    for path in (*folder.glob("images/*"), *folder.glob("masks/*")):
        path.rename(folder / f"{path.parent.name}_{path.name}")
    flat = f"{folder}:images=images_*.*,masks=masks_*.*"  # a pattern that reads the folder of the lock itself
    assert len(list_masks(flat, instances=True).masks) == 3


@pytest.mark.parametrize("part", ["images/a.jpg", "masks/a.png"])
def test_a_dead_link_is_one_problem(folder: Path, part: str) -> None:
    (folder / part).unlink()
    (folder / part).symlink_to("gone")
    summary = build_index(folder, instances=True)
    assert len(summary.problems) == 1
    assert summary.problems[0].startswith(f"{folder / part}: no such file; ")
    assert summary.objects == 1


@pytest.mark.parametrize("change", ["options", "files", "damage"])
def test_what_was_done_for_something_else_is_done_again(folder: Path, tmp_path: Path, change: str) -> None:
    def stop(done: int, _: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(folder, instances=True, out=tmp_path / "i.jsonl", progress=stop)
    options = {"instances": change != "options"}
    if change == "files":
        os.utime(folder / "images/a.jpg", ns=(1, 1))
    elif change == "damage":
        (tmp_path / "i.jsonl.part").write_bytes(b"\0\0\0\n")
    seen: list[int] = []
    build_index(folder, **options, out=tmp_path / "i.jsonl", progress=lambda done, _: seen.append(done))
    assert seen[0] == 1
    assert seen[-1] == 3


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from hrseg_cli.data.index import build_index
folder, chance, out = Path(sys.argv[1]), random.Random(3), Path(sys.argv[2])
killed, reached = 0, set()
for attempt in range(200):
    seen, tell = os.pipe()
    child = os.fork()
    if child == 0:
        def progress(done, total):
            os.write(tell, bytes([done]))
            time.sleep(0.001)
        build_index(folder, instances=True, out=out, workers=1, progress=progress)
        os._exit(0)
    os.close(tell)
    first = os.read(seen, 1)  # from now on it works
    time.sleep(chance.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    reached.update(first)
    os.close(seen)
    if killed == 20:
        break
print(killed, len(reached))
"""


def test_killed_twenty_times_the_index_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for k in range(60):
        for part, suffix in (("images", "jpg"), ("masks", "png")):
            shutil.copy(folder / part / f"{'ab'[k % 2]}.{suffix}", folder / part / f"n{k}.{suffix}")
    (folder / "masks/n7.png").write_bytes(b"")
    whole = build_index(folder, instances=True, out=tmp_path / "whole/i.jsonl")
    out = tmp_path / "killed/i.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, folder, out], capture_output=True, text=True, check=True)
    killed, places = map(int, done.stdout.split())
    assert killed == 20, done.stderr
    assert places > 5  # each went on somewhere else
    again = build_index(folder, instances=True, out=out)
    assert (again.images, again.objects, again.rules, again.problems) == (
        whole.images,
        whole.objects,
        whole.rules,
        whole.problems,
    )
    assert sorted(p.name for p in out.parent.iterdir()) == ["i.jsonl", "i.lines.npy"]
    for name in ("i.jsonl", "i.lines.npy"):
        assert (out.parent / name).read_bytes() == (whole.path.parent / name).read_bytes()


def test_a_quote_in_names_does_not_join_images_when_the_table_is_rebuilt(tmp_path: Path) -> None:
    names = [f'5" {kind}' for kind in ("hose", "pipe", "pump")]
    for name in names:
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / part / f"{name}.png")
    build_index(tmp_path)
    (tmp_path / "index.lines.npy").unlink()
    assert Index(tmp_path / "index.jsonl").image_starts().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "line", ["{}", "[]", '{"id": 5, "image": "a", "mask": "b", "rule": "c", "instance": null}', "{"]
)
def test_a_damaged_line_of_an_index_is_named(tmp_path: Path, line: str) -> None:
    head = '{"version": 1, "name": "a"}\n'
    (tmp_path / "index.jsonl").write_text(f"{head}{line}\n")
    np.save(tmp_path / "index.lines.npy", np.array([[len(head), 0], [len(head) + len(line) + 1, 1]]))
    with pytest.raises(HrsegError, match="object 0: not a valid index line"):
        Index(tmp_path / "index.jsonl")[0]
