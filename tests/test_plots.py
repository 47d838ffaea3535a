"""The pictures: written whole, readable, honest about what they show."""

import io
import os
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from rich.cells import cell_len
from rich.console import Console

from loom_gguf import NotCapturedError, States, StatesError, StatesFileError
from loom_gguf.plots import heat_map, terminal_heat_map, visible
from loom_gguf.states import NodeValues, Roles


def made(n_tokens=12, n_layer=4, *, layers=None, embedding=True, final=True, bad=()):
    """Random states; the first token's are a hundred times the others', and `bad` rows of layer 1 are NaN."""
    rng = np.random.default_rng(0)
    layers = range(n_layer) if layers is None else layers
    keys = [*(["embd"] if embedding else []), *(f"l_out-{il}" for il in layers), *(["result_norm"] if final else [])]
    values = {}
    for key in keys:
        array = rng.standard_normal((n_tokens, 8)).astype(np.float32)
        array[0] *= 100
        if key == "l_out-1":
            array[list(bad)] = np.nan
        values[key] = NodeValues(array, 0)
    roles = Roles(
        n_layer, {il: f"l_out-{il}" for il in layers}, "embd" if embedding else None, "result_norm" if final else None
    )
    return States(values, roles, range(n_tokens), range(n_tokens))


def drawn(renderable, *, width=60, colour=None, encoding="utf-8"):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    Console(file=out, width=width, color_system=colour, force_terminal=colour is not None).print(renderable)
    out.flush()
    return out.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("measure", ["turn", "norm"])
@pytest.mark.parametrize("n_tokens", [1, 10, 80, 700])
def test_a_png_for_any_number_of_tokens(tmp_path, measure, n_tokens):
    texts = [" word"] * n_tokens
    heat_map(made(n_tokens), texts, tmp_path / "x.png", measure=measure, n_prompt=5)
    height, width, _ = imread(tmp_path / "x.png").shape
    assert 300 < height < 4000
    assert 600 < width < 4000
    assert os.listdir(tmp_path) == ["x.png"]


def test_many_layers_and_few_layers(tmp_path):
    heat_map(made(3, 120), None, tmp_path / "x.png")
    heat_map(made(3, 9, layers=[2, 7], embedding=False, final=False), None, tmp_path / "y.png")
    with pytest.raises(NotCapturedError, match="two hidden states"):
        heat_map(made(3, 9, layers=[2], embedding=False, final=False), None, tmp_path / "z.png")
    heat_map(made(3, 9, layers=[2], embedding=False, final=False), None, tmp_path / "z.png", measure="norm")


def test_any_text_is_drawn_without_a_warning(tmp_path):
    texts = [
        "中文",
        "\U0001f600",
        "$x^$",
        "\n\n",
        "\x1b[31m",
        "\udcff",
        "e\u0301",
        "",
        " " * 40,
        "\u202eab",
        "%s{}",
        "ﷺ",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heat_map(made(), texts, tmp_path / "x.png", title="a $title$ \n of two lines")


def test_nan_is_red(tmp_path):
    def red(path):
        pixels = imread(path)[..., :3]
        return int((np.abs(pixels - np.array([0xE3, 0x12, 0x0B]) / 255).max(axis=-1) < 0.01).sum())

    heat_map(made(), None, tmp_path / "whole.png")
    heat_map(made(bad=[3]), None, tmp_path / "bad.png")
    heat_map(made(1, bad=[0], layers=[0, 1], embedding=False, final=False), None, tmp_path / "all.png")
    assert red(tmp_path / "whole.png") == 0
    assert red(tmp_path / "bad.png") > 1000
    assert red(tmp_path / "all.png") > 1000


def test_it_leaves_matplotlib_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    heat_map(made(), None, tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == before


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(StatesError, match="3 texts for 12 rows"):
        heat_map(made(), ["a"] * 3, tmp_path / "x.png")
    with pytest.raises(StatesFileError, match=r"must end in \.png"):
        heat_map(made(), None, tmp_path / "x.pdf")
    with pytest.raises(StatesFileError, match="no folder"):
        heat_map(made(), None, tmp_path / "no" / "x.png")
    with pytest.raises(ValueError, match="turn"):
        heat_map(made(), None, tmp_path / "x.png", measure="size")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" the", "␣the"),
        ("\n", "↵"),
        ("\t", "⇥"),
        ("\x00", "\\x00"),
        ("\u200b", "\\u200b"),
        ("\u0301", "\\u0301"),
        ("a" * 16, "a" * 16),
        ("a" * 17, "a" * 15 + "…"),
        ("", ""),
    ],
)
def test_labels_show_what_cannot_be_seen(text, label):
    assert visible(text) == label


def test_labels_escape_what_the_font_lacks():
    assert visible("a中😀", has_glyph=str.isascii) == "a\\u4e2d…"
    assert visible("中", has_glyph=str.isascii) == "\\u4e2d"


@pytest.mark.parametrize("colour", [None, "truecolor"])
@pytest.mark.parametrize("width", [5, 20, 60, 200])
def test_the_terminal_picture_fits(width, colour):
    texts = [" upon", "中文", "\n", "a" * 50] * 3
    picture = terminal_heat_map(made(), texts, n_prompt=4)
    lines = drawn(picture, width=width).splitlines()
    assert max(map(cell_len, lines)) <= max(width, 12)
    assert drawn(terminal_heat_map(made(), texts, width), width=300, colour=colour)


def test_without_colour_there_are_digits_over_the_text():
    states = made(3, 2)
    lines = drawn(terminal_heat_map(states, ["Once", " upon", " a"], n_prompt=2), width=90).splitlines()
    assert lines[0].startswith("How far each layer turns")
    assert "degrees" in lines[1]
    assert "0123456789" in lines[1]
    rows = [line for line in lines[2:] if line.strip()]
    assert [row.split()[0] for row in rows[:3]] == ["final", "1", "0"]
    assert all(row[6].isdigit() and row[10].isdigit() and row[15] == "|" and row[16].isdigit() for row in rows[:3])
    assert rows[3].rstrip() == "      Once upon| a"


def test_with_colour_there_are_blocks():
    text = drawn(terminal_heat_map(made(3, 2), ["Once", " upon", " a"]), colour="truecolor")
    assert "\x1b[" in text
    assert "48;2;" in text
    ascii_only = drawn(terminal_heat_map(made(3, 2), ["Once", " upon", " a"]), colour="truecolor", encoding="ascii")
    assert "48;2;" not in ascii_only


def test_the_lowest_and_highest_value_have_the_first_and_last_shade():
    angles = [0.0, 45.0, 89.0, 90.0]
    radians = np.radians(angles)
    below = np.tile([1.0, 0.0], (4, 1))
    above = np.stack([np.cos(radians), np.sin(radians)], axis=1)
    values = {key: NodeValues(array.astype(np.float32), 0) for key, array in (("e", below), ("l", above))}
    states = States(values, Roles(1, {0: "l"}, "e", None), range(4), range(4))
    row = next(line for line in drawn(terminal_heat_map(states, list("abcd"))).splitlines() if line.startswith("0 "))
    assert row.rstrip() == "0 0599"  # 45 of 90 degrees is step 5 of 10
    assert "!" in drawn(terminal_heat_map(made(bad=[2]), None))


def test_the_scale_ends_above_block_0_which_turns_embeddings_furthest(tmp_path):
    states = made(5, 2)
    values = {key: value.array for key, value in states.values_by_key.items()}
    values["l_out-1"][:] = values["l_out-0"] + 0.1  # block 1 does little
    values["result_norm"][:] = values["l_out-1"]
    lines = drawn(terminal_heat_map(states, None), width=90).splitlines()
    assert "and more" in lines[1]
    assert next(line for line in lines if line.startswith("    0 ")).split()[1:] == ["9"] * 5
    assert "9" in next(line for line in lines if line.startswith("    1 "))
    assert "and more" not in drawn(terminal_heat_map(states, None, measure="norm"))
