"""The report in a real browser: complete without a network, without complaints, readable in light and dark."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from chromium import open_page
from matplotlib.image import imread

from loom_gguf.analysis import analyze
from loom_gguf.analysis.export import write_report

LLAMA = Path(__file__).parent / "fidelity" / "llama.gguf"

# The contrast (WCAG 2) of every text of the page and its pictures to the background it stands on, lowest first.
CONTRASTS = """
(() => {
  const rgba = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = c => c.slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] > 0) return c; } return [255, 255, 255, 1]; };
  const found = [];
  for (const e of document.querySelectorAll("h1, h2, h3, p, li, td, th, small, dd, span, svg text")) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), drawn = e.namespaceURI.endsWith("svg");
    const [a, b] = [light(rgba(drawn ? style.fill : style.color)), light(ground(e))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), e.textContent.trim().slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two models, two texts, one of them with a name that is no good HTML."""
    prompts = ["One morning a fox went out.", "<b>A & B</b>"]
    folder = tmp_path_factory.mktemp("report")
    write_report([analyze("demo", prompts), analyze(LLAMA, prompts, name="<i>llama")], folder, ["html"])
    return folder / "report.html"


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_leaves_the_machine_and_nothing_is_complained_about(report, dark):
    page = open_page(report, dark=dark, expression=CONTRASTS)
    assert page.requests[0] == report.as_uri()
    assert all(url.startswith("data:image/png") for url in page.requests[1:])
    assert page.problems == []
    assert len(page.value) > 500
    assert page.value[0][0] >= 4.5, page.value[:5]
    picture = imread(io.BytesIO(page.screenshot))
    assert (np.median(picture[..., :3]) < 0.3) == dark
    assert (np.ptp(picture[..., :3], axis=2) > 0.3).any()  # lines and maps have colours


@pytest.mark.parametrize("width", [360, 800])
def test_narrow_windows_scroll_tables_not_the_page(report, width):
    expression = "[document.documentElement.scrollWidth, document.querySelectorAll('svg').length, document.title]"
    page = open_page(report, width=width, expression=expression)
    assert page.value == [pytest.approx(width, abs=20), 12 + 8, "Hidden states of demo, <i>llama"]


def test_the_browser_would_tell(tmp_path):
    """What the tests above look for is seen where it is."""
    (tmp_path / "bad.html").write_text(
        "<title>x</title><img src='http://example.invalid/a.png'><script>console.error('oh'); nothing()</script>"
    )
    page = open_page(tmp_path / "bad.html")
    assert "http://example.invalid/a.png" in page.requests
    assert any("oh" in problem for problem in page.problems)
    assert any("nothing is not defined" in problem for problem in page.problems)
    assert any("ERR_NAME_NOT_RESOLVED" in problem for problem in page.problems)


def test_the_page_names_no_other_and_is_well_formed(report):
    """Also where there is no browser: no address, no script, every id once, every reference to one of them."""
    text = report.read_text("utf-8")
    assert "<script" not in text
    named = set(re.findall(r"(?:src|href|data|action|poster)\s*=\s*\"([^\"#]{1,40})", text))
    assert all(each.startswith("data:") for each in named), named
    assert not re.search(r"@import|url\((?!#)", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(ids)
    parser = _Tags()
    parser.feed(text)
    assert parser.open == []


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
