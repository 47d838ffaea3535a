"""Analyses as files: a page, pictures, JSON, CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StatesFileError
from ..files import StrPath, check_folder
from ..report.files import FORMATS, json_text, save_report
from ..report.files import csv_text as rows_as_csv
from .measuring import Progress
from .report import Analysis, table, to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "MAP_TEXTS", "check_folder", "csv_text", "save_analyses", "write_report"]

MAP_TEXTS = 4  # of each source, whose tokens are drawn; the numbers of all texts are in the JSON and CSV


def save_analyses(analyses: Sequence[Analysis], path: StrPath) -> Path:
    """Write one file, as its suffix says: .html, .json, .csv, or the curves of all measures as .png or .svg.

    Several analyses are put side by side over depth. The file appears whole or not at all.
    """
    found = _some(analyses)
    return save_report(path, lambda kind: _content(found, kind), "the analysis")


def write_report(
    analyses: Sequence[Analysis],
    folder: StrPath,
    formats: Sequence[str] = FORMATS,
    *,
    progress: Progress | None = None,
) -> list[Path]:
    """Write report.html, report.json, report.csv and the pictures into a folder; the paths of what was written.

    Beside the curves, the pictures are maps of the tokens of the first texts. Each file appears whole or not at all,
    and replaces one of its name.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise StatesFileError(f"reports are written as {', '.join(FORMATS)}, not {', '.join(unknown) or 'nothing'}")
    found = _some(analyses)
    target, written = check_folder(folder), []
    for number, kind in enumerate(kinds := [kind for kind in FORMATS if kind in formats]):
        if progress is not None:
            progress(f"writing {kind}", number, len(kinds))
        for name, content in _files(found, kind):
            written.append(save_report(target / f"{name}.{kind}", content, "the report"))
    if progress is not None:
        progress("writing", len(kinds), len(kinds))
    return written


def csv_text(analyses: Sequence[Analysis], delimiter: str = ",") -> str:
    """Every number of every layer as a table; see `report.table`. What has no value is left empty."""
    return rows_as_csv(table(list(analyses)), delimiter)


def _some(analyses: Sequence[Analysis]) -> list[Analysis]:
    if not analyses:
        raise StatesFileError("nothing to report: give at least one analysis")
    return list(analyses)


def _content(analyses: list[Analysis], kind: str) -> str | bytes:
    if kind == "html":
        from .html import html_report

        return html_report(analyses)
    if kind == "json":
        return json_text(to_json(analyses))
    if kind == "csv":
        return csv_text(analyses)
    from ..report.figures import picture
    from .figures import curves

    return picture(curves(analyses), kind)


def _files(analyses: list[Analysis], kind: str) -> Iterator[tuple[str, Callable[[str], str | bytes]]]:
    """Name and content of each file of this kind."""
    yield "measures" if kind in ("png", "svg") else "report", lambda kind: _content(analyses, kind)
    if kind in ("png", "svg"):
        from ..report.figures import picture

        for name, figure in _maps(analyses):
            yield name, lambda kind, figure=figure: picture(figure, kind)  # type: ignore[misc]


def _maps(analyses: list[Analysis]) -> Iterator[tuple[str, Figure]]:
    from .figures import MAPS, token_map

    for number, analysis in enumerate(analyses, 1):
        place = f"-{number}" if len(analyses) > 1 else ""
        for text_number, text in enumerate(analysis.texts[:MAP_TEXTS], 1):
            which = f"-text{text_number}" if len(analysis.texts) > 1 else ""
            for measure in MAPS:
                figure = token_map(analysis, text, measure)
                if figure is not None:
                    yield f"tokens{place}{which}-{measure}", figure
