"""The report in a headless browser: nothing overflows, nothing is fetched, the console is empty."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.report import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")

WIDTHS = (1280, 390)
DARK, LIGHT = 0, 1
# A frame of a phone's width, because a window cannot be that narrow, and a script that inspects the page in it.
HARNESS = """<!DOCTYPE html><style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<iframe id="frame" src="{page}" width="{width}" height="1800"></iframe>
<pre id="page_state"></pre>
<script>
document.getElementById("frame").onload = function () {{
  const inside = this.contentDocument, width = this.contentWindow.innerWidth;
  const boxed = element => element.closest(".scroll, nav ul, svg, .skip, caption") !== null;
  const wide = [...inside.querySelectorAll("body *")].filter(e => !boxed(e) && e.getBoundingClientRect().right > width + 0.5);
  document.getElementById("page_state").textContent = JSON.stringify({{
    scroll: inside.documentElement.scrollWidth, width: width, wide: wide.map(e => e.tagName + "." + e.className),
    fetched: this.contentWindow.performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
  }});
}};
</script>"""


def browse(path, *arguments):
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars", "--allow-file-access-from-files",
        "--enable-logging=stderr", f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=4000", *arguments, path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def inspect(report, width, tmp_path):
    """The state of the page at a width, and the lines on the console."""
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.format(page=report.as_uri(), width=width))
    done = browse(harness, "--dump-dom")
    state = json.loads(re.search(r'<pre id="page_state">(\{.*\})</pre>', done.stdout)[1])
    return state, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def opened(report, tmp_path):
    """A copy with all folds open and all splits shown, because hidden parts cannot overflow."""
    path = tmp_path / "opened.html"
    text = report.read_text(encoding="utf-8").replace("<details>", "<details open>").replace(" checked>", ">")
    path.write_text(text.replace('id="split-all">', 'id="split-all" checked>'), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_nothing_is_fetched(made_run, tmp_path, width):
    page_state, console = inspect(opened(page.write(made_run()), tmp_path), width, tmp_path)
    assert page_state["width"] == width
    assert page_state["scroll"] == width
    assert page_state["wide"] == []
    assert page_state["fetched"] == []
    assert console == []


# For each position of the switch: which blocks are shown, and the height of the page. Sizes of letters in charts.
SWITCHED = """<script>
document.getElementById("frame").onload = function () {{
  const inside = this.contentDocument, page_state = {{ shown: {{}}, height: {{}} }};
  const blocks = () => [...inside.querySelectorAll("#curves .block")];
  const seen = () => blocks().filter(b => b.offsetHeight > 0).map(b => b.querySelector("h3").textContent);
  page_state.first = seen();
  const inputs = [...inside.querySelectorAll(".splits input")];
  page_state.reachable = inputs.every(i => i.tabIndex === 0 && i.offsetHeight > 0);
  for (const input of inputs) {{
    input.click();
    page_state.shown[input.id] = seen();
    page_state.height[input.id] = inside.documentElement.scrollHeight;
  }}
  page_state.letters = [...inside.querySelectorAll(".chart text")].filter(t => t.getScreenCTM())
    .map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a);
  page_state.signs = [...inside.querySelectorAll(".scroll")].map(s => getComputedStyle(s).backgroundAttachment);
  document.getElementById("page_state").textContent = JSON.stringify(page_state);
}};
</script>"""


def switched(report, width, tmp_path):
    harness = tmp_path / "harness.html"
    start, _, _ = HARNESS.partition("<script>")
    harness.write_text((start + SWITCHED).format(page=report.as_uri(), width=width))
    done = browse(harness, "--dump-dom")
    return json.loads(re.search(r'<pre id="page_state">(\{.*\})</pre>', done.stdout)[1])


def test_one_split_is_shown_and_the_others_by_a_switch(made_run, tmp_path):
    page_state = switched(page.write(made_run(splits=("iid", "balanced", "conflict"))), 1280, tmp_path)
    assert page_state["first"] == ["iid"]
    assert page_state["reachable"]
    assert page_state["shown"] == {
        "split-0": ["iid"],
        "split-1": ["balanced"],
        "split-2": ["conflict"],
        "split-all": ["iid", "balanced", "conflict"],
    }
    assert page_state["height"]["split-0"] < 0.6 * page_state["height"]["split-all"]


# The table of classes as it was written, and after each of two clicks on the title of a column; and what a link opens.
SORTED = """<script>
document.getElementById("frame").onload = function () {{
  const inside = this.contentDocument, table = inside.querySelector("#classes table"), states = [];
  const note = () => states.push([[...table.tBodies[0].rows].map(r => r.cells[COLUMN].textContent),
    [...table.tHead.rows[0].cells].map(c => c.getAttribute("aria-sort"))]);
  note();
  for (let i = 0; i < 2; i++) {{ table.tHead.rows[0].cells[COLUMN].querySelector("button").click(); note(); }}
  const buttons = [...table.querySelectorAll("thead button")];
  document.getElementById("page_state").textContent = JSON.stringify({{
    states, focusable: buttons.every(b => b.tabIndex === 0), titles: buttons.map(b => b.textContent),
  }});
}};
</script>"""


@pytest.mark.parametrize(
    ("column", "first"),
    [(0, "ascending"), (1, "descending"), (3, "descending")],
    ids=["names", "counts", "AP"],
)
def test_a_click_on_a_title_sorts_the_classes(made_run, tmp_path, column, first):
    harness = tmp_path / "harness.html"
    start, _, _ = HARNESS.partition("<script>")
    text = (start + SORTED.replace("COLUMN", str(column))).format(
        page=page.write(made_run(splits=("val",))).as_uri(), width=1280
    )
    harness.write_text(text)
    done = browse(harness, "--dump-dom")
    assert ":CONSOLE" not in done.stderr
    page_state = json.loads(html.unescape(re.search(r'<pre id="page_state">(\{.*\})</pre>', done.stdout)[1]))
    written, once, twice = page_state["states"]
    assert page_state["focusable"]
    assert "0 to 100 %" not in page_state["titles"]
    second = {"ascending": "descending", "descending": "ascending"}[first]
    assert (written[1][column], once[1][column], twice[1][column]) == (None, first, second)
    assert sum(order is not None for order in twice[1]) == 1
    assert once[0] == twice[0][::-1]
    assert sorted(once[0]) == sorted(written[0])
    if column:
        values = [float(text) for text in once[0]]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_text_in_charts_keeps_its_size_also_in_a_single_chart(made_run, tmp_path, width):
    workdir = made_run(splits=("val",))
    (workdir / "metrics.jsonl").write_text('{"step": 1, "train/lr": 0.1}\n{"step": 2, "train/lr": 0.2}\n')
    page_state = switched(page.write(workdir), width, tmp_path)
    assert len(page_state["letters"]) > 20
    assert 9 < min(page_state["letters"]) <= max(page_state["letters"]) < 16
    # The CSS shadows that show where content is cut: one is fixed, one scrolls with the content and covers it.
    assert set(page_state["signs"]) == {"local, local, scroll, scroll"}


def test_these_checks_detect_a_broken_page(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body style="margin:0"><div style="width:900px">wide</div><img src="http://127.0.0.1:9/gone.png">'
        '<script>console.error("complaint")</script>'
    )
    page_state, console = inspect(bad, 390, tmp_path)
    assert page_state["scroll"] == 900
    assert page_state["wide"] == ["DIV."]
    assert [name.rpartition("/")[2] for name in page_state["fetched"]] == ["gone.png"]
    assert any("complaint" in line for line in console)


@pytest.mark.parametrize(("scheme", "bright"), [(LIGHT, True), (DARK, False)])
def test_it_follows_the_colour_scheme(made_run, tmp_path, scheme, bright):
    picture = tmp_path / "shot.png"
    browse(
        page.write(made_run()), f"--screenshot={picture}", "--window-size=1280,1600", f"--blink-settings=preferredColorScheme={scheme}"
    )  # fmt: skip
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"), np.float64)
    assert (pixels[:4].mean() > 128) == bright
    # Both colour schemes show text and figures.
    assert pixels.std() > 10
