"""hrseg prepare-data and evaluate on every dataset that hrseg knows, each as a tiny copy in its own layout."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_sets
import yaml

from hrseg_cli.data.manifest import manifest_names

Command = Callable[..., Any]


class Known(NamedTuple):
    """A data root with all tiny copies, manifests that count them, and the counts."""

    root: Path
    manifests: Path
    counts: dict[str, int]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    home = tmp_path_factory.mktemp("known")
    counts = tiny_sets.write_all(home / "data")
    tiny_sets.scaled_manifests(home / "manifests", counts)
    return Known(home / "data", home / "manifests", counts)


@pytest.mark.parametrize("name", manifest_names())
def test_every_known_dataset_is_counted_and_indexed(name: str, known: Known, hrseg: Command) -> None:
    """Nothing is fetched, for all is there; every part has the objects its manifest says; a second call is quick."""
    manifest = yaml.safe_load((known.manifests / f"{name}.yaml").read_text())
    parts = [part for split in manifest.get("parts", {}).values() for part in split]
    expected = parts or [f"{name}/{split}" for split in manifest["splits"]]
    for call in ("first", "second"):
        done = hrseg("prepare-data", known.manifests / f"{name}.yaml", "--root", known.root)
        assert done.code == 0, done.err
        rows = [json.loads(line) for line in done.out.splitlines()]
        counted = {row["dataset"]: row["objects"] for row in rows if "expected" in row}
        assert counted == {part: known.counts[part] for part in expected}
        assert call == "first" or len(rows) == len(expected)  # nothing was decoded again
        assert manifest["licence"] in done.err


def test_a_damaged_mask_is_named_and_missing_from_the_count(known: Known, hrseg: Command, tmp_path: Path) -> None:
    """All names are there, so nothing is fetched; one file turns out torn when it is decoded."""
    shutil.copytree(known.root / "grabcut", tmp_path / "grabcut")
    mask = sorted((tmp_path / "grabcut" / "boundary_GT").iterdir())[0]
    mask.write_bytes(mask.read_bytes()[:50])
    done = hrseg("prepare-data", known.manifests / "grabcut.yaml", "--root", tmp_path)
    assert done.code == 1
    lines = [line for line in done.err.splitlines() if line.startswith("hrseg: ")]
    assert mask.name in lines[0]
    assert "1 valid objects in 1 images, grabcut/val has 2 in 2" in lines[1]
    assert "2 problems" in lines[2]


def test_hqseg44k_runs_all_parts_and_pools_them(known: Known, hrseg: Command, tmp_path: Path) -> None:
    """The four validation sets by name, by Boundary IoU: a row for each and one over all objects; the report agrees."""
    run = tmp_path / "run"
    done = hrseg(
        "evaluate", "--model", "grabcut", "--dataset", "hqseg44k", "--metric", "biou", "--root", known.root,
        "--max-clicks", 2, "--workers", 1, "--out", run,
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["dataset"], row["metric"], row["n"]) for row in rows] == [
        ("dis5k", "biou", 2), ("thinobject5k", "biou", 2), ("coift", "biou", 2), ("hrsod", "biou", 2),
        ("hqseg44k", "biou", 8),
    ]  # fmt: skip
    assert "dis5k/val: only 2 of 470 objects found" in done.err  # a tiny copy must not pass for the whole
    settings = json.loads((run / "run.json").read_text())["asked"]["settings"]
    assert settings["incomplete"]["hrsod"] == "2 of 287"
    parts = [row["mean@1"] for row in rows]
    assert parts[4] == pytest.approx(sum(parts[:4]) / 4, abs=1e-4)
    assert {path.name for path in run.glob("*.csv")} == {
        "dis5k.csv", "thinobject5k.csv", "coift.csv", "hrsod.csv", "noc.csv",
    }  # fmt: skip
    table = hrseg("report", run, "--format", "csv", "--measure", "mean@1")
    assert table.code == 0, table.err
    assert "hqseg44k" in table.out
    assert "hqseg44k n = 8" in hrseg("report", run).out


def test_the_usual_sets_as_one(known: Known, hrseg: Command, tmp_path: Path) -> None:
    done = hrseg(
        "evaluate", "-m", "grabcut", "-d", "regular", "--root", known.root, "--max-clicks", 1, "--workers", 1,
        "-o", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert [json.loads(line)["dataset"] for line in done.out.splitlines()] == [
        "grabcut", "berkeley", "davis", "sbd", "regular",
    ]  # fmt: skip
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["asked"]["settings"]
    assert settings["protocol"]["name"] == "ritm"
    assert {name: own["name"] for name, own in settings["protocols"].items()} == {"davis": "ritm-davis"}
    assert "protocol ritm v1 (davis: ritm-davis v1)" in hrseg("report", tmp_path / "run").out


def test_a_mask_to_start_from_is_another_evaluation(known: Known, hrseg: Command, tmp_path: Path) -> None:
    """The same objects, folder and settings, but for the initial masks: nothing of the old run may be reprinted."""
    words = [
        "evaluate",
        "-m",
        "grabcut",
        "--root",
        known.root,
        "--max-clicks",
        1,
        "--workers",
        1,
        "-o",
        tmp_path / "run",
    ]
    assert hrseg(*words, "-d", "davis585").code == 0
    zero = json.loads((tmp_path / "run" / "traces.jsonl").read_text().splitlines()[0])
    assert hrseg(*words, "-d", "davis585:init=stm").code == 0
    given = json.loads((tmp_path / "run" / "traces.jsonl").read_text().splitlines()[0])
    assert zero["id"] == given["id"]
    assert zero["clicks"] != given["clicks"]


@pytest.mark.parametrize(("dataset", "protocol"), [("davis", "ritm-davis"), ("grabcut", "ritm")])
def test_a_known_dataset_brings_its_protocol(
    dataset: str, protocol: str, known: Known, hrseg: Command, tmp_path: Path
) -> None:
    """RITM looks at DAVIS through crops of 600 pixels; another wish is still heard."""
    words = ["evaluate", "-m", "grabcut", "-d", dataset, "--root", known.root, "--max-clicks", 1, "--workers", 1]
    rule = ["--binarize", "gt128"]
    for asked, used in (([], protocol), (["--protocol", "plain"], "plain"), (rule, f"{protocol}+binarize=gt128")):
        assert hrseg(*words, *asked, "-o", tmp_path / used).code == 0
        settings = json.loads((tmp_path / used / "run.json").read_text())["asked"]["settings"]
        assert settings["protocol"]["name"] == used


def test_verify_fetches_nothing_and_says_what_is_missing(known: Known, hrseg: Command, tmp_path: Path) -> None:
    shutil.copytree(known.root / "grabcut", tmp_path / "grabcut")
    sorted((tmp_path / "grabcut" / "boundary_GT").iterdir())[0].unlink()
    sorted((tmp_path / "grabcut" / "data_GT").iterdir())[0].unlink()
    done = hrseg("prepare-data", known.manifests / "grabcut.yaml", "--root", tmp_path, "--verify")
    assert done.code == 1
    assert "1 valid objects in 1 images, grabcut/val has 2 in 2" in done.err
    assert "not fetched" not in done.err


def test_an_archive_by_hand_is_asked_for_before_anything_is_fetched(hrseg: Command, tmp_path: Path) -> None:
    done = hrseg("prepare-data", "dis5k", "--root", tmp_path)
    assert done.code == 1
    assert "DIS5K-full.zip has no public link" in done.err
    assert not any(tmp_path.rglob("*.zip*"))


def test_what_is_unpacked_and_then_removed_is_unpacked_again(hrseg: Command, tmp_path: Path) -> None:
    """The stamp of an archive alone is not believed when the folder it made is gone."""
    archive, manifest = archive_of_grabcut(tmp_path)
    words = ["prepare-data", manifest, "--root", tmp_path / "data", "--from", archive]
    assert hrseg(*words).code == 0
    shutil.rmtree(tmp_path / "data" / "grabcut" / "data_GT")
    shutil.rmtree(tmp_path / "data" / "grabcut" / "boundary_GT")
    done = hrseg(*words)
    assert done.code == 0, done.err


def archive_of_grabcut(folder: Path) -> tuple[Path, Path]:
    """A small archive as GrabCut's authors pack it, and a manifest that counts it and knows no sum."""
    count = tiny_sets.write_split(folder / "source", tiny_sets.load_manifest("grabcut").splits["val"])
    manifest = yaml.safe_load((tiny_sets.data_folder("data_manifests") / "grabcut.yaml").read_text())
    archive = folder / manifest["files"][0]["name"]
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((folder / "source" / "grabcut").rglob("*.*")):
            file.write(path, f"GrabCut/{path.relative_to(folder / 'source' / 'grabcut')}")
    manifest["splits"]["val"] |= {"count_images": tiny_sets.IMAGES, "count_objects": count}
    manifest["files"][0] |= {"size": None, "sha256": None}
    (folder / "grabcut.yaml").write_text(yaml.safe_dump(manifest))
    return archive, folder / "grabcut.yaml"


def test_an_archive_at_hand_is_taken_and_unpacked(hrseg: Command, tmp_path: Path) -> None:
    """--from: a folder with the archive, and nothing is downloaded; a folder without it says what is missing."""
    archive, manifest = archive_of_grabcut(tmp_path)
    words = ["prepare-data", manifest, "--root", tmp_path / "data"]

    (tmp_path / "empty").mkdir()
    done = hrseg(*words, "--from", tmp_path / "empty")
    assert done.code == 1
    assert archive.name in done.err

    done = hrseg(*words, "--from", tmp_path)
    assert done.code == 0, done.err
    assert "recorded SHA-256" in done.err
    assert json.loads(done.out.splitlines()[-1])["objects"] == tiny_sets.IMAGES
    index = tmp_path / "data" / "grabcut"
    assert next(index.glob("index*.jsonl")).read_text().count("\n") == tiny_sets.IMAGES + 1


def test_smaller_copies_are_a_dataset_of_their_own(known: Known, hrseg: Command, tmp_path: Path) -> None:
    done = hrseg(
        "prepare-data", known.manifests / "grabcut.yaml", "--root", known.root, "--cache-longest", 64, "--verify"
    )
    assert done.code == 0, done.err
    cache = json.loads(done.out.splitlines()[-1])
    assert cache["objects"] == tiny_sets.IMAGES
    done = hrseg("simulate-clicks", "-m", "grabcut", "-d", cache["cache"], "--max-clicks", 1, "--workers", 1)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == tiny_sets.IMAGES


def test_smaller_copies_of_two_sets_side_by_side_stay_apart(hrseg: Command, tmp_path: Path) -> None:
    for name, numbers in (("s", (1, 2)), ("v", (3,))):
        record: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
        for number in numbers:
            image, _ = tiny_sets.photograph(number)
            tiny_sets._save(tmp_path / "images" / f"{number}.png", image)
            record["images"].append({"id": number, "file_name": f"{number}.png", "height": 48, "width": 64})
            box = [10, 10, 40, 10, 40, 30, 10, 30]
            record["annotations"].append({"id": number, "image_id": number, "category_id": 1, "segmentation": [box]})
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
        done = hrseg("prepare-data", tmp_path / f"{name}.json", "--cache-longest", 64)
        assert done.code == 0, done.err
    for name, count in (("s", 2), ("v", 1)):
        assert len(list((tmp_path / f"{name}-64" / "images").iterdir())) == count


def test_the_list_shows_what_is_there(known: Known, hrseg: Command, tmp_path: Path) -> None:
    done = hrseg("prepare-data", "--list", "--root", tmp_path)
    assert done.code == 0, done.err
    lines = {line.split()[0]: line for line in done.out.splitlines()[1:]}
    assert set(lines) == {*manifest_names(), "procedural", "samples"}
    assert "44320" in lines["hqseg44k"].replace(",", "")
    assert all("  no  " in line for name, line in lines.items() if name not in ("procedural", "samples"))
    partial = hrseg("prepare-data", "--list", "--root", known.root).out
    assert "partial" in partial  # two of 50 are there


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "hrseg list datasets"),
        (["hqseg44"], 2, "Did you mean 'hqseg44k'"),
        (["grabcut", "--split", "train"], 2, "split of grabcut 'train'"),
        (["big", "--from", "{tmp}/nothing"], 1, "--from"),
        (["big"], 1, "BIG.zip"),
        (["grabcut", "--count", "3"], 1, "--count does not apply to grabcut"),
        (["grabcut", "--instances"], 1, "--instances does not apply to grabcut"),
        (["procedural", "--verify"], 1, "--verify does not apply to procedural"),
        (["{tmp}", "--from", "{tmp}"], 1, "--from does not apply to"),
        (["missing.yaml"], 1, "no such file"),
    ],
)
def test_mistakes_are_one_line(words: list[str], code: int, message: str, hrseg: Command, tmp_path: Path) -> None:
    done = hrseg("prepare-data", *(word.format(tmp=tmp_path) for word in words), "--root", tmp_path)
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_known_dataset_that_is_not_there_says_how_to_get_it(hrseg: Command, tmp_path: Path) -> None:
    done = hrseg("evaluate", "-m", "grabcut", "-d", "hqseg44k", "--root", tmp_path)
    assert done.code == 1
    assert "hrseg prepare-data hqseg44k" in done.err
