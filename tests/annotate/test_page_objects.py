"""Labels, objects, whole masks, prompts and the folder, by hand."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Served, Tab
from PIL import Image
from tiny_photos import photograph, truth

pytestmark = pytest.mark.page

RED, BLUE, GROUND = (40, 40), (70, 120), (10, 100)


@pytest.fixture
def labelled(served: Served) -> Served:
    (served.place / "labels.txt").write_text("cup\ntable\nspoon\n")
    served.stop()
    served.start()
    return served


def names(tab: Tab) -> list[str]:
    return [str(one.inner_text()) for one in tab.page.query_selector_all("#objects .name")]


def test_labels_by_key_by_button_and_by_name(labelled: Served, context: Any) -> None:
    """1 still zooms, r still renames; a label gives the colour, and is that of the next object too."""
    tab = Tab(context, labelled.url)
    tab.click(RED)
    before = tab.at((0, 1))[0] - tab.at((0, 0))[0]
    tab.press("1")
    assert tab.at((0, 1))[0] - tab.at((0, 0))[0] == pytest.approx(1)
    tab.press("0")
    assert tab.at((0, 1))[0] - tab.at((0, 0))[0] == pytest.approx(before)
    tab.press("Shift+Digit2")
    assert names(tab) == ["table"]
    assert np.abs(np.subtract(tab.colour((30, 30))[:3], (29, 120, 220))).max() < 4
    tab.press("n")
    tab.click(BLUE)
    assert names(tab) == ["table", "table"]
    tab.page.click("#labels button:nth-child(3)")
    tab.idle()
    tab.press("r")
    assert tab.page.eval_on_selector_all("#known-labels option", "all => all.map(one => one.value)")[:3] == [
        "cup", "table", "spoon",
    ]  # fmt: skip
    tab.page.keyboard.type("ladle")
    tab.press("Enter")
    assert names(tab) == ["table", "ladle"]
    coco = json.loads((labelled.place / "annotations" / "coco.json").read_text())
    assert [one["category_id"] for one in coco["annotations"]] == [2, 4]
    assert "with ladle" in tab.text("#filter")
    assert tab.errors == []


def test_labels_beyond_the_keys_have_buttons(served: Served, context: Any) -> None:
    (served.place / "labels.txt").write_text("\n".join(f"label {number}" for number in range(1, 13)))
    served.stop()
    served.start()
    tab = Tab(context, served.url)
    tab.click(RED)
    tab.page.click("#labels button:nth-child(12)")
    tab.idle()
    assert names(tab) == ["label 12"]
    assert len(tab.page.query_selector_all("#labels kbd")) == 9
    assert tab.errors == []


def test_hide_lock_order_and_never_overlap(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.click(RED)
    tab.press("n")
    tab.click(BLUE)
    tab.press("Shift+H")
    assert tab.colour((60, 100))[3] == 0
    assert tab.colour((30, 30))[3] > 0
    tab.press("Shift+H", "{")
    assert [one["key"] for one in served.record()["objects"]] == ["a_1", "a_0"]
    tab.press("k")
    assert "locked" in str(tab.page.get_attribute("#objects .chosen .name", "aria-label"))
    tab.click(GROUND)
    assert "is locked" in tab.text("#message")
    assert np.array_equal(served.mask("a_1"), truth("blue"))
    tab.press("k", "]")
    tab.page.click("#light-tools summary")
    tab.page.fill("#contrast", "150")
    assert "contrast(1.5)" in tab.page.evaluate("getComputedStyle(document.getElementById('picture')).filter")
    tab.page.click("#mask-tools summary")
    tab.page.check("#apart")
    tab.press("Escape", "b")
    tab.drag((75, 60), (75, 140))
    painted = served.mask("a_0")
    assert painted[75, 80]
    assert not (painted & served.mask("a_1")).any()
    assert tab.page.evaluate("document.activeElement.id") == "overlay"
    assert [error for error in tab.errors if "423" not in error] == []


def test_a_mask_is_reshaped_and_copied_on(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.click(RED)
    tab.press("e")
    tab.drag((40, 40))
    tab.press("v")
    assert not served.mask("a_0")[40, 40]
    tab.press("F")
    assert np.array_equal(served.mask("a_0"), truth("red"))
    tab.press(">")
    assert served.mask("a_0").sum() == truth("red").sum() + 2 * (40 + 50)
    tab.press("<", "m")
    tab.page.wait_for_selector("#title:has-text('b.png')")
    tab.ready()
    assert np.array_equal(served.mask("b_0"), truth("red"))
    tab.click(BLUE)
    assert np.array_equal(served.mask("b_0"), truth("red") | truth("blue"))
    assert tab.errors == []


def test_an_outline_is_edited(served: Served, context: Any) -> None:
    """A corner is moved, one is added and moved, one is deleted; Esc gives up, Enter and other tools apply."""
    tab = Tab(context, served.url)
    tab.click(RED)  # rows 20 to 60, columns 20 to 70
    tab.press("p")
    assert "4 corners" in tab.text("#tolerance-text")
    grid = lambda row, col: (row - 0.5, col - 0.5)  # noqa: E731 - corners lie between the pixels
    tab.drag(grid(60, 70), grid(60, 90))
    assert tab.text("#saved") == "not saved"
    tab.press("Escape")
    assert np.array_equal(served.mask("a_0"), truth("red"))
    tab.press("p")
    tab.drag(grid(20, 45), grid(10, 45))  # the middle of the upper side
    tab.page.mouse.click(*tab.at(grid(60, 20)), button="right")
    tab.press("Enter")
    mask = served.mask("a_0")
    assert mask[12, 45]
    assert not mask[55, 25]
    assert mask[55, 65]
    tab.press("p", ".", "Shift+ArrowUp")
    tab.press("v")  # another tool applies it
    assert not np.array_equal(served.mask("a_0"), mask)
    tab.press("z", "z")
    assert np.array_equal(served.mask("a_0"), truth("red"))
    assert tab.errors == []


def test_scribbles_boxes_and_previews(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.press("s")
    tab.drag((30, 30), (70, 120))
    assert served.mask("a_0")[truth("red") | truth("blue")].all()
    assert [one["kind"] for one in served.record()["objects"][0]["actions"]] == ["scribble"]
    tab.drag((45, 40), (50, 60), button="right")
    assert not served.mask("a_0")[truth("red")].any()
    tab.press("z", "z", "v")
    tab.drag((25, 30), (44, 49))
    found = np.argwhere(served.mask("a_0"))
    assert found.min(0).tolist() > [20, 25]
    tab.page.mouse.move(*tab.at((60, 100)))
    tab.page.mouse.move(*tab.at(BLUE))
    tab.page.wait_for_function(
        "([x, y]) => { const o = document.getElementById('overlay'), q = o.getBoundingClientRect();"
        " const d = o.width / q.width;"
        " return o.getContext('2d').getImageData((x - q.x) * d, (y - q.y) * d, 1, 1).data[3] > 200; }",
        arg=list(tab.at((70, 89.75))),
    )
    assert not served.mask("a_0")[BLUE], "only shown"
    tab.click(BLUE)
    assert served.mask("a_0")[BLUE]
    assert tab.errors == []


def test_done_moves_on_and_the_page_reopens_there(served: Served, context: Any) -> None:
    Image.fromarray(photograph()).save(served.place / "images" / "c.png")
    served.stop()
    served.start()
    tab = Tab(context, served.url)
    tab.page.click("#next")
    tab.page.wait_for_selector("#title:has-text('b.png')")
    tab.ready()
    tab.click(RED)
    tab.press("d")
    tab.page.wait_for_selector("#title:has-text('c.png')")
    tab.ready()
    assert "1 of 3 done" in tab.text("#count")
    assert "/object" in tab.text("#pace")
    tab.press("d")
    tab.page.wait_for_selector("#title:has-text('a.png')")
    tab.ready()
    for choice, shown in (("done", ["b.png", "c.png"]), ("todo", ["a.png"]), ("open", ["a.png"])):
        tab.page.select_option("#filter", choice)
        assert (
            tab.page.eval_on_selector_all("#images li:not([hidden]) .name", "all => all.map(one => one.textContent)")
            == shown
        )
    tab.press("Escape", "PageDown")
    assert "a.png" in tab.text("#title"), "the list has no other image"
    tab.page.select_option("#filter", "all")
    tab.page.click("#previous")
    tab.press("Escape", "d")
    tab.page.wait_for_selector("#message:has-text('all images are done')")
    served.stop()
    served.start()  # at another address: only the folder knows
    other = Tab(context, served.url)
    assert "a.png" in other.text("#title")
    assert tab.errors == []


def test_an_export_is_a_zip(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.click(RED)
    tab.page.click("#export-button")
    tab.page.check("[name=instances]")
    with tab.page.expect_download() as waiting:
        tab.page.click("#export-ok")
    file = waiting.value
    assert file.suggested_filename == "shop.zip"
    with zipfile.ZipFile(io.BytesIO(Path(file.path()).read_bytes())) as whole:
        assert set(whole.namelist()) == {"masks/a_0.png", "instances/a.png", "coco.json"}
    tab.page.wait_for_selector("#export", state="hidden")
    assert tab.errors == []
