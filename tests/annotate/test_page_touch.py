"""The page under fingers, on a small screen, and read aloud."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from browser import Served, Tab
from tiny_photos import truth

pytestmark = pytest.mark.page

RED, BLUE, GROUND = (40, 40), (70, 120), (10, 100)

# What breaks a rule, as lines of text. Every control has a name, and none takes the focus out of order; ids are unique,
# and what refers to one finds it; text stands out from its ground (WCAG's 4.5); no target is smaller than "least".
RULES = """
least => {
  const broken = [];
  const seen = (one) => one.checkVisibility({ visibilityProperty: true });
  const tell = (rule, one) => broken.push(`${rule}: ${one.outerHTML.slice(0, 120)}`);
  const byId = (ids) => ids.split(" ").map((id) => document.getElementById(id));
  const name = (one) => (one.getAttribute("aria-label") ?? byId(one.getAttribute("aria-labelledby") ?? "")
    .map((part) => part?.textContent ?? "").join(" ").trim()) || one.labels?.[0]?.textContent.trim()
    || (one.matches("input") ? "" : one.textContent.trim());
  const controls = [...document.querySelectorAll("button, select, input, summary, [tabindex]")].filter(seen);
  for (const one of controls) {
    if (!name(one)) tell("no name", one);
    if (one.tabIndex > 0) tell("out of order", one);
    const { width, height } = (one.type === "checkbox" ? one.closest("label") : one).getBoundingClientRect();
    const cut = one.matches("button") && getComputedStyle(one).textOverflow !== "ellipsis";
    if (cut && one.scrollWidth > one.clientWidth + 1) tell("wider than its button", one);
    if (Math.min(width, height) < least) tell(`only ${Math.round(width)} x ${Math.round(height)}`, one);
  }
  for (const one of document.querySelectorAll("dialog, nav, aside, [role=group], [role=img], progress")) {
    if (!name(one)) tell("no name", one);
  }
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  ids.filter((id, index) => ids.indexOf(id) < index).forEach((id) => broken.push(`twice: ${id}`));
  for (const key of ["aria-labelledby", "aria-controls", "for", "list"]) {
    for (const one of document.querySelectorAll(`[${key}]`)) {
      if (byId(one.getAttribute(key)).includes(null)) tell(key, one);
    }
  }
  if (document.querySelectorAll("h1").length !== 1) broken.push("not one h1");
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((part) => part / 255)
      .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const one = words.currentNode.parentElement;
    if (!words.currentNode.data.trim() || !seen(one) || one.closest(":disabled")) continue;
    let ground = one;
    const fill = () => getComputedStyle(ground).backgroundColor;
    while (ground.parentElement && /, 0\\)$/.test(fill())) ground = ground.parentElement;
    const [a, b] = [light(getComputedStyle(one).color), light(fill())].sort((x, y) => x - y);
    if ((b + 0.05) / (a + 0.05) < 4.5) tell(`contrast ${((b + 0.05) / (a + 0.05)).toFixed(1)}`, one);
  }
  return broken;
}
"""


@pytest.fixture
def phone(chromium: Any) -> Iterator[Any]:
    context = chromium.new_context(
        viewport={"width": 390, "height": 760}, has_touch=True, is_mobile=True, device_scale_factor=2
    )
    context.set_default_timeout(60_000)
    yield context
    context.close()


class Fingers:
    def __init__(self, tab: Tab) -> None:
        self.session = tab.page.context.new_cdp_session(tab.page)

    def __call__(self, kind: str, *places: tuple[float, float]) -> None:
        """An event of several fingers, at pixels of the screen."""
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def test_fingers_click_on_both_sides_pinch_and_label(served: Served, phone: Any) -> None:
    tab = Tab(phone, served.url)
    for place in (RED, BLUE):
        tab.page.touchscreen.tap(*tab.at(place))
        tab.idle()
    assert np.array_equal(served.mask("a_0"), truth("red") | truth("blue"))
    tab.page.tap("#on-background")
    tab.page.touchscreen.tap(*tab.at(RED))
    tab.idle()
    assert np.array_equal(served.mask("a_0"), truth("blue"))
    touch = Fingers(tab)
    before, revision = tab.at((0, 1))[0] - tab.at((0, 0))[0], served.record()["revision"]
    touch("touchStart", (150, 150))
    touch("touchStart", (150, 150), (200, 200))
    touch("touchMove", (120, 120), (240, 240))
    tab.drawn()
    wide = tab.at((0, 1))[0] - tab.at((0, 0))[0]
    assert wide > 1.5 * before
    corner = tab.at((0, 0))
    touch("touchMove", (150, 140), (270, 260))
    tab.drawn()
    assert np.allclose(np.subtract(tab.at((0, 0)), corner), (30, 20), atol=2)
    touch("touchEnd", (150, 140))
    touch("touchEnd")
    tab.idle()
    assert served.record()["revision"] == revision, "a gesture is no click"
    tab.page.tap("#zoom-fit")
    tab.drawn()
    assert np.isclose(tab.at((0, 1))[0] - tab.at((0, 0))[0], before)
    tab.page.tap("#objects .rename")
    tab.page.fill("#rename-text", "jug")
    tab.page.tap("#rename-ok")
    tab.idle()
    assert tab.text("#objects .name") == "jug"
    assert tab.errors == []


def test_the_page_keeps_the_rules_on_a_phone(served: Served, phone: Any) -> None:
    """Targets of 44 pixels, in the dark too; nothing is wider than the screen."""
    tab = Tab(phone, served.url)
    tab.page.touchscreen.tap(*tab.at(RED))
    tab.idle()
    tab.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    tab.page.emulate_media(color_scheme="dark")
    assert tab.page.evaluate(RULES, 44) == []
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
    tab.page.tap("#files-open")
    assert tab.page.evaluate(RULES, 44) == []
    tab.page.tap("#files-close")
    served.stop()
    tab.page.touchscreen.tap(*tab.at(BLUE))
    tab.page.wait_for_selector("#held:has-text('not saved')")
    assert tab.page.evaluate(RULES, 44) == []


def test_the_page_keeps_the_rules_on_a_desk(served: Served, context: Any) -> None:
    """Also its dialogs; and Tab goes through all of it in the order of the text, and back to the image."""
    (served.place / "labels.txt").write_text("cup\ntable\n")
    served.stop()
    served.start()
    tab = Tab(context, served.url)
    assert tab.page.evaluate(RULES, 0) == []
    tab.click(RED)
    tab.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert tab.page.evaluate(RULES, 0) == []
    tab.page.emulate_media(color_scheme="dark")
    assert tab.page.evaluate(RULES, 0) == []
    for opener, dialog in (("#help-button", "#help"), ("#objects .rename", "#rename"), ("#export-button", "#export")):
        tab.page.click(opener)
        assert tab.page.is_visible(dialog)
        assert tab.page.evaluate(RULES, 0) == []
        tab.page.keyboard.press("Escape")
    tab.page.focus("#overlay")
    places = []
    for _ in range(80):
        tab.page.keyboard.press("Tab")
        places.append(
            tab.page.evaluate(
                "() => [...document.querySelectorAll('button, select, input, summary, canvas')]"
                ".indexOf(document.activeElement)"
            )
        )
        if places[-1] == -1:  # the end of the page
            break
    assert len(places) > 30
    assert places[:-1] == sorted(set(places[:-1]))
