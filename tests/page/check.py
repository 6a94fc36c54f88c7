"""Looks at a launch's page with a browser: check.py LINK RUN LAUNCHER [PICTURES]. Kills a worker, and the launcher at last."""

import json
import os
import pathlib
import re
import shutil
import signal
import sys
import time

from playwright.sync_api import expect, sync_playwright

link, run, launcher, pictures = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
origin = link.split("/?")[0]
HOSTILE = "<script>document.title='x'</script>\"'><img src=x onerror=\"document.title='x'\">"
WIDE, PHONE = {"width": 1360, "height": 900}, {"width": 390, "height": 844}
complaints = []


def picture(page, name):
    if pictures:
        page.screenshot(path=pathlib.Path(pictures) / f"{name}.png", full_page=True)


def ok(what):
    print(f"ok  {what}")


def whole(text):
    return int(re.sub(r"\D", "", text) or 0)


def listen_for_complaints(page):
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))


def opened(browser):
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    stranger = context.new_page()
    assert stranger.goto(origin).status == 401, "without the link it is shut"
    assert "shoal page" in stranger.content(), "and says what helps"
    stranger.close()
    page = context.new_page()
    listen_for_complaints(page)
    page.goto(link)
    assert page.url == f"{origin}/", "the token is not left in the address"
    cookie = context.cookies()[0]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict", cookie
    assert page.evaluate("document.cookie") == "", "no script sees the cookie"
    other = browser.new_context().new_page()
    assert other.goto(link).status == 403, "the link is good once"
    other.context.close()
    ok("the link opens the page once, and leaves a cookie that scripts do not see")
    return page


def content(page):
    expect(page.locator("#phase")).to_have_text("training", timeout=60_000)
    expect(page.locator("#connected")).to_have_text("live")
    assert page.locator("#name").inner_text() == run.name, "its hostile name is text"
    expect(page.locator("#workers tr")).to_have_count(4)
    expect(page.locator("#cells rect.cell.good")).to_have_count(4)
    expect(page.locator("#cells path.link").first).to_be_attached()
    expect(page.locator("#loss-picture path.smooth")).to_be_attached()
    expect(page.locator("#timeline canvas")).to_be_visible()
    expect(page.locator("#experts canvas")).to_be_visible()
    expect(page.locator("#events li").first).to_be_visible()
    assert page.locator("img").count() == 0 and page.title().startswith("training")
    ok("cells, links, loss, timeline, experts, workers and events are there")


def moves(page):
    before, curve = whole(page.locator("#step").inner_text()), page.locator("path.train").get_attribute("d")
    page.wait_for_function("n => Number(document.getElementById('step').textContent.replace(/\\D/g, '')) > n", arg=before)
    page.wait_for_function("d => document.querySelector('path.train').getAttribute('d') !== d", arg=curve)
    ok("steps and the curve move")


def keys(page):
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip", "the first key leads past the head"
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("(document.activeElement.closest('section') ?? document.body).className"))
    for part in ["loss", "timeline", "experts", "workers", "events"]:
        assert part in seen, (part, seen)
    page.locator("#loss-picture svg").focus()
    page.keyboard.press("Home")
    expect(page.locator("#loss-says")).to_contain_text("step 1:")
    moves(page)
    expect(page.locator("#loss-says")).to_contain_text("step 1:")
    assert page.evaluate("document.activeElement.closest('section').className") == "loss", "who reads stays, while it moves"
    page.locator("#experts canvas").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#experts-says")).to_contain_text("expert 0:")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#experts-says")).to_contain_text("expert 1:")
    page.locator("#timeline canvas").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#timeline-says")).to_contain_text("forward")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "who has the keys is seen"
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    ok("everything is reached and read by keys")


CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const bad = [];
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let n = 0;
  while (words.nextNode()) {
    const element = words.currentNode.parentElement;
    if (!words.currentNode.textContent.trim() || !element.checkVisibility() || element.closest('noscript, title')) continue;
    const style = getComputedStyle(element);
    const ink = parse(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
    // Text of cells stands on their own colour.
    const cell = element.closest('g')?.querySelector('rect');
    const paper = cell ? parse(getComputedStyle(cell).fill).slice(0, 3) : behind(element.closest('svg') ?? element);
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    n += 1;
    if (ratio < 4.5) bad.push(`${words.currentNode.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return { n, bad };
}"""


def contrast(page):
    for scheme in ["light", "dark"]:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.wait_for_timeout(300)
        found = page.evaluate(CONTRAST)
        assert found["n"] > 40 and not found["bad"], (scheme, found)
        beats = page.evaluate("getComputedStyle(document.querySelector('.dot')).animationName")
        assert beats == "none", "nothing moves for whoever wants it still"
        picture(page, scheme)
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")
    ok("text has a contrast of 4.5 and more, light and dark")


def phone(page):
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(400)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= PHONE["width"], f"{wide} pixels want to be scrolled sideways"
    picture(page, "phone")
    page.set_viewport_size(WIDE)
    ok("390 pixels are wide enough")


def a_worker_is_killed(page):
    joined = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    of_two = [event for event in joined if event["kind"] == "joined" and event.get("worker") == 2]
    os.kill(int(of_two[-1]["fact"].split()[1].strip(",")), signal.SIGKILL)
    expect(page.locator("#events")).to_contain_text("evicted", timeout=30_000)
    picture(page, "killed")
    expect(page.locator("#recoveries")).to_have_text("1 recovery", timeout=30_000)
    expect(page.locator("#phase")).to_have_text("training", timeout=30_000)
    step = whole(page.locator("#step").inner_text())
    page.wait_for_function("n => Number(document.getElementById('step').textContent.replace(/\\D/g, '')) > n", arg=step)
    lost = page.locator("#workers tr", has_text="worker-2").locator("td").last
    expect(lost).to_have_text("1")
    ok("a worker that is killed is seen to go, and the run to go on")


def hostile_names(page):
    """As no run would tell them: whatever a page is told, it is text."""
    parts = {
        "run": {"name": HOSTILE, "title": HOSTILE, "phase": "training", "why": HOSTILE, "trouble": HOSTILE, "step": 1, "steps": 2,
                "loss": None, "seconds_per_step": None, "tokens_per_second": None, "seconds_left": None, "generation": 1,
                "checkpoint_step": 0, "snapshot_step": 0, "recoveries": 0},
        "grid": [1, 1, 1],
        "workers": [{"name": HOSTILE, "state": HOSTILE, "cells": [0], "pace": None, "heard": None, "slow": False,
                     "yields_to": HOSTILE, "quarantine": None, "losses": 0, "sent": None, "received": None}],
        "cluster": {"rigs": [{"name": HOSTILE, "is": HOSTILE, "cordoned": False, "job": HOSTILE, "worker": 1, "heard": 1}],
                    "jobs": [{"name": HOSTILE, "phase": HOSTILE, "why": HOSTILE}]},
        "events": [HOSTILE, f"0:01.0  step 1  {HOSTILE}: {HOSTILE}"],
    }
    body = f"data: {json.dumps({'parts': parts})}\n\n"
    other = page.context.new_page()
    listen_for_complaints(other)
    other.route("**/live", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    other.goto(origin)
    expect(other.locator("#name")).to_have_text(HOSTILE)
    expect(other.locator("#workers td").first).to_have_text(HOSTILE)
    expect(other.locator("#rigs td").first).to_have_text(HOSTILE)
    expect(other.locator("#events li").last).to_have_text(HOSTILE)
    assert other.locator("img").count() == 0 and other.locator("script").count() == 1
    assert HOSTILE in other.title(), "no script has changed it"
    assert other.evaluate("document.documentElement.scrollWidth") <= WIDE["width"]
    other.close()
    ok("hostile names are text, wherever they stand")


def a_run_that_ends(page):
    os.kill(launcher, signal.SIGKILL)
    expect(page.locator("#connected")).to_contain_text("not connected since", timeout=10_000)
    expect(page.locator("#again")).to_contain_text("again in", timeout=10_000)
    assert whole(page.locator("#step").inner_text()) > 0, "what was known stands"
    picture(page, "gone")
    ok("a page that hears nothing says so, and since when")


def main():
    with sync_playwright() as playwright:
        program = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = opened(browser)
        content(page)
        moves(page)
        keys(page)
        # Curves and events are more of a picture after a while.
        page.wait_for_timeout(15_000 if pictures else 500)
        contrast(page)
        phone(page)
        hostile_names(page)
        a_worker_is_killed(page)
        if pictures:
            page.wait_for_timeout(4_000)
            picture(page, "after")
        assert not complaints, complaints
        a_run_that_ends(page)
        browser.close()


begun = time.monotonic()
main()
print(f"ok  all of it in {time.monotonic() - begun:.0f} s")
