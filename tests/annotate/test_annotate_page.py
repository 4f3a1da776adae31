"""The page as a person uses it, in the system's Chromium, over the real server."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from browser import Served, Tab
from PIL import Image
from tiny_photos import truth

pytestmark = pytest.mark.page

RED, BLUE, GROUND = (40, 40), (70, 120), (10, 100)


def test_click_undo_reload_restart(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.click(RED)
    assert np.array_equal(served.mask("a_0"), truth("red"))
    assert tab.colour((30, 30))[3] > 80
    assert tab.colour((30, 100))[3] == 0
    assert "model " in tab.text("#time")
    tab.click(BLUE)
    assert np.array_equal(served.mask("a_0"), truth("red") | truth("blue"))
    tab.click((45, 60), button="right")
    assert np.array_equal(served.mask("a_0"), truth("blue"))
    tab.page.click("#undo")
    tab.idle()
    assert np.array_equal(served.mask("a_0"), truth("red") | truth("blue"))
    tab.page.keyboard.press("Control+z")
    tab.idle()
    tab.page.reload()
    tab.ready()
    assert tab.colour((30, 30))[3] > 80
    assert tab.text("#objects .clicks") == "1"
    assert tab.errors == []
    served.stop()
    served.start()
    again = Tab(context, served.url)
    again.press("y")
    assert np.array_equal(served.mask("a_0"), truth("red") | truth("blue"))
    assert again.text("#objects .clicks") == "2"
    assert again.errors == []


def test_a_mask_that_lay_there_is_corrected(served: Served, context: Any) -> None:
    (served.place / "masks").mkdir()
    Image.fromarray((truth("red") | truth("blue")).astype(np.uint8) * 255).save(served.place / "masks" / "a.png")
    served.stop()
    served.start()
    tab = Tab(context, served.url)
    assert tab.colour(BLUE)[3] > 80
    tab.page.keyboard.down("Shift")  # for trackpads without a right button
    tab.click(BLUE)
    tab.page.keyboard.up("Shift")
    assert np.array_equal(served.mask("a"), truth("red"))
    assert tab.errors == []


def test_box_brush_objects_and_zoom(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.drag((18, 18), (62, 72))
    assert np.array_equal(served.mask("a_0"), truth("red"))
    tab.press("n", "b")
    tab.drag((110, 20), (110, 80))
    line = served.mask("a_1")
    assert line[110, 20:80].all()
    assert not line[:100].any()
    tab.drag((110, 50), button="right")
    assert not served.mask("a_1")[110, 50]
    tab.press("r")
    tab.page.keyboard.type("twig")
    tab.press("Enter", "c", "Escape")
    assert [one.inner_text() for one in tab.page.query_selector_all("#objects .name")] == ["object", "twig"]
    tab.press("v")
    tab.page.mouse.move(*tab.at(BLUE))
    before = tab.at((0, 1))[0] - tab.at((0, 0))[0]
    tab.page.mouse.wheel(0, -200)
    tab.idle()
    assert tab.at((0, 1))[0] - tab.at((0, 0))[0] > 1.2 * before
    tab.click((98, 140))
    assert served.mask("a_1")[truth("blue")].all()
    tab.press("Delete", "Tab", "Enter")
    tab.page.wait_for_selector("#objects li:nth-child(2)", state="detached")
    assert not (served.place / "masks" / "a_1.png").exists()
    assert tab.errors == []


def test_a_stroke_is_drawn_in_the_colour_that_its_object_gets(served: Served, context: Any) -> None:
    """While it is drawn, and when it is there."""
    tab = Tab(context, served.url)
    for number, wanted in enumerate([(230, 57, 70), (29, 120, 220)]):
        tab.press("n", "b")
        tab.page.mouse.move(*tab.at((80 + 20 * number, 20)))
        tab.page.mouse.down()
        tab.page.mouse.move(*tab.at((80 + 20 * number, 80)), steps=3)
        tab.idle()
        assert np.abs(np.subtract(tab.colour((80 + 20 * number, 50))[:3], wanted)).max() < 4
        tab.page.mouse.up()
        tab.idle()
        assert np.abs(np.subtract(tab.colour((80 + 20 * number, 50))[:3], wanted)).max() < 4


def test_a_narrow_window_shows_all(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.page.set_viewport_size({"width": 390, "height": 700})
    tab.idle()
    stage = tab.page.locator("#stage").bounding_box()
    assert stage["width"] == 390
    assert stage["height"] > 300
    tools = tab.page.locator("aside").bounding_box()
    assert tools["y"] >= stage["height"]
    assert tools["y"] + tools["height"] <= 700
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
    tab.page.click("#files-open")
    tab.page.click("#images li:nth-child(2) button")
    tab.page.wait_for_selector("#title:has-text('b.png')")
    tab.page.wait_for_selector("nav", state="hidden")
    tab.page.click("#previous")
    tab.page.wait_for_selector("#title:has-text('a.png')")
    tab.ready()
    tab.click(RED)
    assert np.array_equal(served.mask("a_0"), truth("red"))


def test_keyboard_only(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    for _ in range(4):
        tab.page.keyboard.press("ArrowUp")
    for _ in range(10):
        tab.page.keyboard.press("ArrowLeft")
    tab.press("Shift+ArrowLeft", "Enter")
    assert np.array_equal(served.mask("a_0"), truth("red"))
    tab.press("z")
    assert not (served.place / "masks" / "a_0.png").exists()
    tab.press("y", "Shift+Enter")
    assert not (served.place / "masks" / "a_0.png").exists(), "the background click takes the colour away again"
    tab.press("z", "d")
    assert "1 of 2 done" in tab.text("#count")
    tab.press("?")
    assert tab.page.is_visible("#help")
    tab.press("Escape", "PageDown")
    tab.page.wait_for_selector("#title:has-text('b.png')")
    tab.ready()
    tab.press("x", "Enter", *["ArrowDown"] * 3, *["ArrowRight"] * 3, "Enter")
    record = json.loads((served.place / "annotations" / "images" / "b.json").read_text())
    assert record["objects"][0]["actions"][0]["box"] is not None
    assert tab.errors == []


def test_two_tabs_on_one_image(served: Served, context: Any) -> None:
    one, other = Tab(context, served.url), Tab(context, served.url)
    one.click(RED)
    other.click(BLUE)
    assert "another tab" in other.text("#message")
    assert other.colour(RED)[3] > 80, "it shows what the first has done"
    assert np.array_equal(served.mask("a_0"), truth("red"))
    other.page.wait_for_timeout(500)  # sooner, a second click there is part of a double click
    other.click(BLUE)
    assert np.array_equal(served.mask("a_0"), truth("red") | truth("blue"))
    one.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    one.page.wait_for_selector("#message:has-text('another tab')")
    assert one.colour((60, 100))[3] > 80
    assert one.errors == []


def test_two_tabs_on_two_images(served: Served, context: Any) -> None:
    """Neither is in the other's way, and the files about all images have both."""
    one, other = Tab(context, served.url), Tab(context, served.url)
    other.press("PageDown")
    other.ready()
    one.click(RED)
    other.click(BLUE)
    one.click(BLUE)
    assert np.array_equal(served.mask("a_0"), truth("red") | truth("blue"))
    assert np.array_equal(served.mask("b_0"), truth("blue"))
    coco = json.loads((served.place / "annotations" / "coco.json").read_text())
    assert [one["image_id"] for one in coco["annotations"]] == [1, 2]
    assert one.errors == other.errors == []


def test_a_hand_that_is_quicker_than_the_model(served: Served, context: Any) -> None:
    """What is done is for the object that was meant, and for the image that was seen."""
    tab = Tab(context, served.url)
    served.delay = 0.3
    tab.page.mouse.click(*tab.at(RED))
    tab.page.keyboard.press("n")
    tab.page.mouse.click(*tab.at(BLUE))
    tab.idle()
    tab.page.evaluate(
        "keys => { for (const key of keys) document.dispatchEvent(new KeyboardEvent('keydown', { key })); }",
        ["PageDown", "Enter", "z", "d", "n"],  # at once: there is nothing to see yet
    )
    tab.ready()
    assert "b.png" in tab.text("#title")
    assert np.array_equal(served.mask("a_0"), truth("red"))
    assert np.array_equal(served.mask("a_1"), truth("blue"))
    assert sorted(path.name for path in (served.place / "annotations" / "images").iterdir()) == ["a.json"]
    assert tab.page.is_hidden("#message")
    assert tab.errors == []


def test_what_was_meant_for_another_state_is_given_up(served: Served, context: Any) -> None:
    """All of it, not just the first of three quick clicks."""
    one, other = Tab(context, served.url), Tab(context, served.url)
    one.click(RED)
    served.delay = 0.3
    for _ in range(3):
        other.page.mouse.click(*other.at(BLUE))
    other.idle()
    assert "another tab" in other.text("#message")
    assert np.array_equal(served.mask("a_0"), truth("red"))


def test_a_threshold_is_not_lost_by_turning_the_page(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.click(RED)
    tab.page.keyboard.press("t")
    tab.page.keyboard.press("PageDown")
    tab.page.wait_for_selector("#title:has-text('b.png')")
    tab.ready()
    record = json.loads((served.place / "annotations" / "images" / "a.json").read_text())
    assert record["objects"][0]["threshold"] == 0.54
    assert tab.page.is_hidden("#message")


def test_a_full_disk_shows_what_is_there(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.click(RED)
    traces = served.place / "annotations" / "traces.jsonl"
    traces.unlink()
    traces.mkdir()  # as good as a full disk: it cannot be replaced
    tab.click(BLUE)
    assert "traces.jsonl" in tab.text("#message")
    traces.rmdir()
    tab.click((45, 60), button="right")
    assert tab.page.is_hidden("#message"), "it has seen the revision that was stored"
    assert np.array_equal(served.mask("a_0"), truth("blue"))


def test_a_wrong_token_shows_a_line(served: Served, context: Any) -> None:
    page = context.new_page()
    page.goto(served.url + "x")
    page.wait_for_selector("#empty:has-text('earlier start')")
