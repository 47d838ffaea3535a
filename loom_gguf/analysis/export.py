"""An analysis as files: report.html, pictures, JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StatesFileError
from ..states_file import replacing
from .measuring import Progress
from .report import Analysis, table, to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("html", "png", "svg", "json", "csv")
MAP_TEXTS = 4  # of each source, whose tokens are drawn; the numbers of all texts are in the JSON and CSV

_DPI = 150


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made if need be, if files may be written there; worth asking before a long computation."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StatesFileError(
            f"the folder {path} cannot be made: {error.strerror or error}. Choose another one"
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise StatesFileError(f"the folder {path} cannot be written to: choose another one")
    return path


def write_report(
    analyses: Sequence[Analysis],
    folder: str | os.PathLike[str],
    formats: Sequence[str] = FORMATS,
    *,
    progress: Progress | None = None,
) -> list[Path]:
    """Write report.html, report.json, report.csv and the pictures into a folder; the paths of what was written.

    Several analyses are drawn side by side over depth. Each file appears whole or not at all, and replaces one of its
    name.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise StatesFileError(f"reports are written as {', '.join(FORMATS)}, not {', '.join(unknown) or 'nothing'}")
    if not analyses:
        raise StatesFileError("nothing to report: give at least one analysis")
    target, found, written = check_folder(folder), list(analyses), []
    for number, kind in enumerate(kinds := [kind for kind in FORMATS if kind in formats]):
        if progress is not None:
            progress(f"writing {kind}", number, len(kinds))
        written += [_write(target / name, data) for name, data in _files(found, kind)]
    if progress is not None:
        progress("writing", len(kinds), len(kinds))
    return written


def csv_text(analyses: Sequence[Analysis], delimiter: str = ",") -> str:
    """Every number of every layer as a table; see `report.table`. What has no value is left empty."""
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(table(list(analyses)))
    return out.getvalue()


def _files(analyses: list[Analysis], kind: str) -> Iterator[tuple[str, bytes]]:
    if kind == "html":
        from .html import html_report

        yield "report.html", html_report(analyses).encode()
    elif kind == "json":
        text = json.dumps(to_json(analyses), indent=1, ensure_ascii=False, allow_nan=False)
        yield "report.json", text.encode("utf-8", "backslashreplace") + b"\n"
    elif kind == "csv":
        yield "report.csv", csv_text(analyses).encode("utf-8", "backslashreplace")
    else:
        for name, figure in _figures(analyses):
            yield f"{name}.{kind}", picture(figure, kind)


def _figures(analyses: list[Analysis]) -> Iterator[tuple[str, Figure]]:
    from .figures import MAPS, curves, token_map

    yield "measures", curves(analyses)
    for number, analysis in enumerate(analyses, 1):
        place = f"-{number}" if len(analyses) > 1 else ""
        for text_number, text in enumerate(analysis.texts[:MAP_TEXTS], 1):
            which = f"-text{text_number}" if len(analysis.texts) > 1 else ""
            for measure in MAPS:
                figure = token_map(analysis, text, measure)
                if figure is not None:
                    yield f"tokens{place}{which}-{measure}", figure


def picture(figure: Figure, kind: str, *, text: bool = False, name: str = "loom_gguf") -> bytes:
    """A figure as a PNG or SVG file; the same bytes each time.

    text: in an SVG, letters as text in the reader's own fonts, not as outlines. name: makes an SVG's ids its own.
    """
    from matplotlib import rc_context

    out = io.BytesIO()
    made_by = {"Software": "loom_gguf"} if kind == "png" else {"Creator": "loom_gguf", "Date": None}
    with rc_context({"svg.fonttype": "none" if text else "path", "svg.hashsalt": name}):
        figure.savefig(out, format=kind, dpi=_DPI, metadata=made_by)
    return out.getvalue()


def _write(path: Path, data: bytes) -> Path:
    with replacing(path, "the report") as temporary:
        temporary.write_bytes(data)
    return path
