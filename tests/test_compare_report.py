"""What a comparison writes: a table, one HTML file, pictures, JSON and CSV; and its command."""

import csv
import io
import json
import os
import re
import warnings
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from oracle import fidelity_file, torch_says
from rich.console import Console

from loom_gguf import Capture, StatesFileError
from loom_gguf.cli import main
from loom_gguf.compare import Comparison, SideFacts, compare

LLAMA, Q4 = str(fidelity_file("llama")), str(fidelity_file("llama-q4_0"))
TOKENS = torch_says("llama")["tokens"].tolist()
SUFFIXES = ("html", "png", "svg", "json", "csv")
ON_ONE_THREAD = ["--threads", "1"]


@pytest.fixture(scope="module")
def found(shared):
    """Llama and its Q4_0."""
    return compare(shared("llama"), shared("llama-q4_0"), tokens=[TOKENS, [1, 2, 3]])


def made(n_states=5, n_rows=7, *, value=0.01, logits=True, name="a.gguf"):
    """A comparison of random numbers, with rows that have none."""
    rng = np.random.default_rng(0)
    errors = value * rng.random((n_states, n_rows)) ** 4
    if n_rows > 2:
        errors[1, 0], errors[2, 1] = np.nan, np.inf
    kl = errors[-1].copy()
    tops = rng.integers(0, 3, (2, n_rows))
    return Comparison(
        a=SideFacts(name, {"quantization": "F16"}),
        b=SideFacts("b.gguf", {}),
        n_layer=n_states,
        states=("embedding", *map(str, range(n_states - 1))),
        errors=errors,
        cosine_distances=np.where(np.isfinite(errors), errors, np.nan) ** 2,
        prompts=np.zeros(n_rows, np.int64),
        positions=np.arange(n_rows),
        tokens=np.arange(n_rows),
        kl=kl if logits else None,
        top_a=tops[0] if logits else None,
        top_b=tops[1] if logits else None,
        texts={0: "<script>alert(1)</script>", 1: "\x1b[31m", 2: "中"},
    )


def printed(comparison, width=160):
    out = io.StringIO()
    Console(file=out, width=width).print(comparison)
    return out.getvalue()


# -- tables -----------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_per_state_and_says_where_they_part(found):
    text = printed(found)
    for label in ("embedding", "layer 0", "layer 1", "layer 2", "final"):
        assert re.search(rf"│ {label} +│", text)
    assert f"{found.median_error[2]:#.3g}" in text
    assert f"{found.max_error[2]:#.3g}" in text
    assert "They part at embedding, the first hidden state where a relative error exceeds 0.05" in text
    assert f"{found.top1_agreement:.2%}" in text
    assert "in nats" in text
    assert "llama.gguf (F32, llama, exact)" in text
    assert "llama-q4_0.gguf (Q4_0, llama, exact)" in text
    assert "27 rows of 2 prompts" in text


def test_identical_files_are_called_so(shared):
    text = printed(compare(shared("llama"), shared("llama"), tokens=[1]))
    assert "The two are identical" in text
    assert "They part" not in text


def test_below_the_threshold_they_never_part(shared):
    found = compare(shared("llama"), shared("llama-f16"), tokens=TOKENS)
    assert "They never part: no relative error exceeds 0.05" in printed(found)


def test_nothing_that_steers_a_terminal_is_printed():
    assert "\x1b" not in printed(made(name="a\x1b[2Jb"))


def test_repr(found):
    assert "llama.gguf" in repr(found)
    assert "embedding" in repr(found)


# -- files ------------------------------------------------------------------------------------------------------


def test_json_has_every_number(found, tmp_path):
    found.save(tmp_path / "x.json")
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["first_parting"] == "embedding"
    assert [state["state"] for state in report["states"]] == list(found.states)
    assert [state["relative_error"]["median"] for state in report["states"]] == found.median_error.tolist()
    assert [row["relative_error"] for row in report["rows"]] == found.errors.T.tolist()
    assert [row["cosine"] for row in report["rows"]] == found.cosines.T.tolist()
    assert [row["kl_nats"] for row in report["rows"]] == found.kl.tolist()
    assert [row["token"] for row in report["rows"]] == found.tokens.tolist()
    assert report["logits"]["top1_agreement"] == found.top1_agreement
    assert report["a"]["name"] == "llama.gguf"


def test_json_has_null_for_what_is_no_number(tmp_path):
    made().save(tmp_path / "x.json")
    report = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert report["rows"][0]["relative_error"][1] is None
    assert report["rows"][1]["relative_error"][2] is None


def test_csv_has_every_number(found, tmp_path):
    found.save(tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    n_states = len(found.states)
    assert len(lines) == len(found.tokens) * (n_states + 1)
    states = [line for line in lines if line["state"] != "logits"]
    assert [float(line["relative_error"]) for line in states] == found.errors.T.ravel().tolist()
    assert [float(line["cosine"]) for line in states] == found.cosines.T.ravel().tolist()
    logits = [line for line in lines if line["state"] == "logits"]
    assert [float(line["kl_nats"]) for line in logits] == found.kl.tolist()
    assert [(int(x["top1_a"]), int(x["top1_b"])) for x in logits] == list(zip(found.top_a, found.top_b, strict=True))
    assert [int(line["token"]) for line in logits] == found.tokens.tolist()


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.urls, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [value for key, value in attrs if key in ("src", "href", "xlink:href", "action", "data")]

    def handle_data(self, data):
        self.text += data


def test_html_is_one_file_that_asks_for_nothing(found, tmp_path):
    found.save(tmp_path / "x.html")
    assert os.listdir(tmp_path) == ["x.html"]
    text = (tmp_path / "x.html").read_text()
    page = Page(text)
    assert all(url.startswith(("#", "data:")) for url in page.urls)
    assert not {"script", "iframe", "object", "img"} & set(page.tags)
    assert "svg" in page.tags
    assert not re.search(r"url\((?!#)|@import|<!DOCTYPE svg", text)
    assert "They part at embedding" in page.text
    assert f"{found.median_error[3]:#.3g}" in page.text
    assert page.text.count("layer 1") >= 1


def test_html_shows_texts_as_texts(tmp_path):
    made(name="<b>&.gguf").save(tmp_path / "x.html")
    page = Page((tmp_path / "x.html").read_text())
    assert "b" not in page.tags
    assert "script" not in page.tags
    assert "<b>&.gguf" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert made()._repr_html_().lstrip().startswith("<section")


@pytest.mark.parametrize(
    ("n_states", "n_rows", "value", "logits"), [(1, 1, 0.5, False), (3, 1, 0.0, True), (130, 3000, 3.0, True)]
)
def test_pictures_of_any_size(tmp_path, n_states, n_rows, value, logits):
    comparison = made(n_states, n_rows, value=value, logits=logits, name="中\x00$x$.gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison.save(tmp_path / "x.png")
        comparison.save(tmp_path / "x.svg")
    height, width, _ = imread(tmp_path / "x.png").shape
    assert 1000 < width < 2500
    assert 700 < height < 2500
    root = ET.parse(tmp_path / "x.svg").getroot()
    assert root.tag.endswith("svg")


def test_the_same_picture_is_the_same_file(tmp_path):
    for name in ("x.svg", "y.svg"):
        made(logits=False).save(tmp_path / name)
    assert (tmp_path / "x.svg").read_bytes() == (tmp_path / "y.svg").read_bytes()


def test_a_threshold_of_0_and_only_nan(tmp_path):
    comparison = made(2, 1, value=0.0)
    nothing = Comparison(**{**vars(comparison), "errors": np.full((2, 1), np.nan), "threshold": 0.0})
    for suffix in SUFFIXES:
        nothing.save(tmp_path / f"x.{suffix}")
    assert "no number" in printed(nothing)


@pytest.mark.parametrize(
    ("path", "text"), [("x.pdf", "must end in"), ("no/x.html", "no folder"), ("folder.csv", "is a folder")]
)
def test_where_nothing_can_be_written(tmp_path, found, path, text):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(StatesFileError, match=text):
        found.save(tmp_path / path)


# -- the command ------------------------------------------------------------------------------------------------


def failed(capsys, *arguments, status=1):
    assert main(["compare", *arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_the_command_prints_the_table_and_writes_what_is_asked_for(capsys, tmp_path, shared):
    paths = [str(tmp_path / f"x.{suffix}") for suffix in SUFFIXES]
    how = ["--precision", "exact", "--tokens", ",".join(map(str, TOKENS)), "--tokens", "1,2", *ON_ONE_THREAD]
    assert main(["compare", LLAMA, Q4, *how, "--out", *paths]) == 0
    out, err = capsys.readouterr()
    wanted = compare(shared("llama"), shared("llama-q4_0"), tokens=[TOKENS, [1, 2]])
    assert f"{wanted.median_error[2]:#.3g}" in out
    assert "They part at embedding" in out
    assert err.count("wrote ") == 5
    assert sorted(os.listdir(tmp_path)) == sorted(f"x.{suffix}" for suffix in SUFFIXES)
    report = json.loads((tmp_path / "x.json").read_text())
    np.testing.assert_array_equal([row["relative_error"] for row in report["rows"]], wanted.errors.T)


def test_each_side_can_be_opened_in_its_own_way(capsys):
    how = ["--prompt", "a b", "c", "--prompt", "d", "--b-precision", "exact", "--a-gpu-layers", "0", "--json"]
    assert main(["compare", LLAMA, LLAMA, *how, *ON_ONE_THREAD]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["a"]["precision"], report["b"]["precision"]) == ("fast", "exact")
    assert report["a"]["n_gpu_layers"] == 0
    assert "n_gpu_layers" not in report["b"]
    assert {row["prompt"] for row in report["rows"]} == {0, 1, 2}
    assert report["first_difference"] == "0"
    assert report["first_parting"] is None
    again = ["--threshold", "1e-9", "--no-logits", "--one-at-a-time"]
    assert main(["compare", LLAMA, LLAMA, *how, *again, *ON_ONE_THREAD]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["first_parting"] == "0"
    assert report["logits"] is None


def test_prompts_from_a_file_and_from_stdin(capsys, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("one\n\n  two\n")
    assert (
        main(["compare", LLAMA, LLAMA, "--prompts-file", str(tmp_path / "prompts.txt"), "--json", *ON_ONE_THREAD]) == 0
    )
    first = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n  two"))
    assert main(["compare", LLAMA, LLAMA, "--prompts-file", "-", "--json", *ON_ONE_THREAD]) == 0
    assert capsys.readouterr().out == first
    assert {row["prompt"] for row in json.loads(first)["rows"]} == {0, 1}


def test_a_file_of_states_and_a_model(capsys, tmp_path, shared):
    states = shared("llama", precision="fast").forward(TOKENS, Capture.all_layers() | Capture.names(["result_output"]))
    states.save(tmp_path / "x.safetensors")
    assert main(["compare", str(tmp_path / "x.safetensors"), LLAMA, *ON_ONE_THREAD]) == 0
    assert "identical" in capsys.readouterr().out


def test_wrong_usage(capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    assert "no prompts" in failed(capsys, LLAMA, LLAMA, "--prompts-file", str(tmp_path / "empty.txt"))
    assert "UTF-8" in failed(capsys, LLAMA, LLAMA, "--prompts-file", str(tmp_path / "latin.txt"))
    assert "No such file" in failed(capsys, LLAMA, LLAMA, "--prompts-file", "none.txt")
    assert "must end in" in failed(capsys, LLAMA, LLAMA, "--out", "x.pdf")
    assert "threshold" in failed(capsys, LLAMA, LLAMA, "--threshold", "nan")
    assert "no model" in failed(capsys, LLAMA, "none.gguf")
    assert "list of token ids" in failed(capsys, LLAMA, LLAMA, "--tokens", "a,b", status=2)
    assert "not allowed with" in failed(capsys, LLAMA, LLAMA, "--tokens", "1", "--prompt", "x", status=2)
