"""The page in a real browser: it renders, sorts, filters, explains, and asks nothing of the network.

A probe script is appended to the page, uses it as a reader would, and leaves what it saw as JSON in the document, which
`--dump-dom` prints. Errors are taken from the browser's own log.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from autoquant.report import render_html, sentence

from . import sample

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH"),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=1366,768",
)
PROBE = """
<script>
(() => {
  const seen = {violations: []};
  document.addEventListener("securitypolicyviolation", (event) => seen.violations.push(event.blockedURI));
  const column = (table, title) => {
    const heads = [...document.querySelectorAll(`#${table} th`)];
    const index = heads.findIndex((head) => head.textContent === title);
    return {
      click: () => heads[index].querySelector("button").click(),
      aria: () => heads[index].getAttribute("aria-sort"),
      values: () => [...document.querySelectorAll(`#${table} tbody tr`)].map((row) => row.cells[index].dataset.v),
    };
  };
  seen.text = document.body.innerText;
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.background = getComputedStyle(document.body).backgroundColor;
  const [score, name, input] = ["Score", "Layer", "Input"].map((title) => column("layer-table", title));
  score.click(); seen.down = score.values(); seen.downAria = score.aria();
  score.click(); seen.up = score.values(); seen.upAria = score.aria();
  name.click(); seen.names = name.values(); seen.staleAria = score.aria();
  input.click(); seen.gapsDown = input.values();
  input.click(); seen.gapsUp = input.values();
  const filter = document.querySelector("input[data-filter]");
  filter.value = "layer.3 query"; filter.dispatchEvent(new Event("input"));
  const left = [...document.querySelectorAll("#layer-table tbody tr:not([hidden])")];
  seen.filtered = left.map((row) => row.cells[0].textContent);
  seen.counted = document.querySelector("output").textContent;
  const at = (element) => element.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
  const cells = [...document.querySelectorAll(".heat td")];
  seen.tips = [cells[0], cells[18], document.querySelector(".heat td.on"), document.querySelector(".mark.shipped")]
    .map((element) => { if (!element) return null; at(element); return document.getElementById("tip").textContent; });
  at(document.body); seen.tipGone = document.getElementById("tip").textContent;
  const tab = document.querySelectorAll(".tabs button")[1];
  if (tab) { tab.click(); seen.plots = [...document.querySelectorAll(".plot")].map((plot) => plot.offsetHeight > 0); }
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  seen.colours = new Set(cells.map((cell) => getComputedStyle(cell).backgroundColor)).size;
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
})();
</script>
"""


def _visit(report: dict[str, Any], folder: Path, *flags: str) -> dict[str, Any]:
    page = folder / "page.html"
    page.write_text(render_html(report).replace("</body>", PROBE + "</body>"), encoding="utf8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, "the probe did not finish"
    seen = json.loads(unescape(found.group(1)))
    assert isinstance(seen, dict)
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _visit(sample.full(), tmp_path_factory.mktemp("browser"))


def test_the_text_is_visible_and_fits_a_laptop(seen: dict[str, Any]) -> None:
    text = " ".join(seen["text"].split())
    assert sentence(sample.full()) in text
    for heading in ("What was tried", "Certification", "Sensitivity", "Layers", "Left as they are", "How it was"):
        assert heading in text
    assert seen["overflow"] <= 0
    assert seen["colours"] >= 10


def test_nothing_is_requested(seen: dict[str, Any]) -> None:
    assert seen["requests"] == []
    assert seen["violations"] == []


def test_a_click_sorts_numbers_down_and_a_second_one_up(seen: dict[str, Any]) -> None:
    scores = sorted(layer["score"] for layer in sample.full()["layers"])
    assert [float(value) for value in seen["up"]] == scores
    assert [float(value) for value in seen["down"]] == scores[::-1]
    assert (seen["downAria"], seen["upAria"], seen["staleAria"]) == ("descending", "ascending", None)


def test_text_sorts_up_with_numbers_in_names_in_order(seen: dict[str, Any]) -> None:
    assert sorted(seen["names"]) == seen["names"]


def test_cells_without_a_number_stay_last(seen: dict[str, Any]) -> None:
    for rows in (seen["gapsDown"], seen["gapsUp"]):
        assert len([value for value in rows if value is None]) == 2 and rows[-2:] == [None, None]


def test_the_filter_keeps_rows_that_have_every_word(seen: dict[str, Any]) -> None:
    assert seen["filtered"] == ["bert.encoder.layer.3.attention.self.query"]
    assert seen["counted"] == "1 of 40"


def test_the_pointer_shows_figures(seen: dict[str, Any]) -> None:
    first, last, chosen, shipped = seen["tips"]
    assert first.splitlines()[:3] == ["bert.embeddings.word_embeddings", "float32", "score 0"]
    assert last.endswith("not offered for this layer")
    assert "(chosen)" in chosen and "SQNR" in chosen and "MB" in chosen
    assert shipped.startswith("int8 on 38 (shipped)")
    assert seen["tipGone"] == ""


def test_the_second_plot_can_be_chosen(seen: dict[str, Any]) -> None:
    assert seen["plots"] == [False, True]


def test_dark_mode_is_dark_and_a_profile_works(tmp_path: Path, seen: dict[str, Any]) -> None:
    dark = _visit(sample.profile_only(), tmp_path, "--blink-settings=preferredColorScheme=0")
    assert seen["background"] == "rgb(255, 255, 255)"
    assert dark["background"] == "rgb(18, 21, 27)"
    assert dark["overflow"] <= 0
