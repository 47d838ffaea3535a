"""Every page in a real browser: complete without a network, without complaints, readable in light and dark."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from chromium import CONTRASTS, open_page, open_pages
from matplotlib.image import imread

from loom_gguf import Model
from loom_gguf.analysis import analyze
from loom_gguf.analysis.export import save_analyses
from loom_gguf.compare import compare
from loom_gguf.lens import lens

LLAMA = Path(__file__).parent / "fidelity" / "llama.gguf"
PAGES = ("analysis", "comparison", "lens")

# What a page must hold: least number of texts, pictures, cells of tables.
LEAST = {"analysis": (500, 12 + 4, 200), "comparison": (150, 1, 60), "lens": (150, 0, 70)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One of each kind, with names and texts that are no good HTML, and NaN."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name}.html" for name in PAGES}
    text = "One morning <b>A & B</b>"
    with Model("demo", n_threads=1) as demo:
        found = lens(demo, text)
        analyses = [analyze(demo, text, name="demo"), analyze(LLAMA, text, name="<i>llama")]
    save_analyses(analyses, paths["analysis"])
    kl, prob, top = found.kl.copy(), found.prob_of_final.copy(), found.top_ids.copy()
    kl[2, 1] = prob[2, 1] = np.nan
    top[2, 1] = -1
    replace(found, kl=kl, prob_of_final=prob, top_ids=top, model="<i>demo").save(paths["lens"])
    compared = compare("demo", "demo", text, a_options={"n_threads": 1}, b_options={"precision": "exact"})
    errors = compared.errors.copy()
    errors[1, 1], errors[3, 2] = np.nan, np.inf
    replace(compared, errors=errors, a=replace(compared.a, name="<i>demo"), threshold=1e-4).save(paths["comparison"])
    return paths


@pytest.fixture(scope="module")
def opened():
    with open_pages() as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_leaves_the_machine_and_nothing_is_complained_about(pages, opened, name, dark):
    what = "document.querySelectorAll"
    expression = f"[{CONTRASTS.strip()}, {what}('main svg').length, {what}('td').length, document.title]"
    page = opened(pages[name], dark=dark, expression=expression, shot="window")
    assert page.requests[0] == pages[name].as_uri()
    assert all(url.startswith("data:image/png") for url in page.requests[1:])
    assert page.problems == []
    contrasts, n_pictures, n_cells, title = page.value
    assert (len(contrasts) > LEAST[name][0], n_pictures >= LEAST[name][1], n_cells >= LEAST[name][2]) == (True,) * 3
    assert contrasts[0][0] >= 4.5, contrasts[:5]
    assert "<i>" in title
    picture = imread(io.BytesIO(page.screenshot))
    assert (np.median(picture[..., :3]) < 0.3) == dark
    assert (np.ptp(picture[..., :3], axis=2) > 0.3).any()  # lines, maps and cells have colours


@pytest.mark.parametrize("name", PAGES)
def test_narrow_windows_scroll_tables_not_the_page(pages, opened, name):
    page = opened(pages[name], width=360, expression="document.documentElement.scrollWidth", shot="")
    assert page.value == pytest.approx(360, abs=20)


def test_every_cell_of_the_lens_can_be_asked(pages, opened):
    """A click tells its tokens, in each of the colours; what is no number is said to be none."""
    expression = """(() => {
      const found = [];
      for (const measure of document.querySelectorAll("#measure option")) {
        document.getElementById("measure").value = measure.value;
        document.getElementById("measure").dispatchEvent(new Event("change"));
        for (const cell of document.querySelectorAll("#lens button")) {
          cell.click();
          found.push([cell.style.background !== "", document.querySelectorAll("#detail tr").length, cell.textContent]);
        }
      }
      return found;
    })()"""
    cells = opened(pages["lens"], expression=expression, shot="").value
    assert len(cells) % (4 * 10) == 0
    assert all(coloured for coloured, _, _ in cells)
    assert {n for _, n, _ in cells} == {0, 5}
    assert all((n == 0) == (text == "no number") for _, n, text in cells)


def test_the_browser_would_tell(tmp_path):
    """What the tests above look for is seen where it is."""
    (tmp_path / "bad.html").write_text(
        "<title>x</title><img src='http://example.invalid/a.png'><script>console.error('oh'); nothing()</script>"
        "<p style='color: #999; background: #fff'>pale"
    )
    page = open_page(tmp_path / "bad.html", expression=CONTRASTS)
    assert "http://example.invalid/a.png" in page.requests
    assert any("oh" in problem for problem in page.problems)
    assert any("nothing is not defined" in problem for problem in page.problems)
    assert any("ERR_NAME_NOT_RESOLVED" in problem for problem in page.problems)
    assert page.value[0][0] < 3


@pytest.mark.parametrize("name", PAGES)
def test_the_page_names_no_other_and_is_well_formed(pages, name):
    """Also where there is no browser: no address, no foreign script, every id once, every reference to one of them."""
    text = pages[name].read_text("utf-8")
    assert ("<script" in text) == (name == "lens")
    assert "default-src 'none'" in text
    assert "unsafe-inline" not in re.search(r"script-src[^\"]*|$", text)[0]
    assert "://" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
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
