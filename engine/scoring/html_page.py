"""Builds a page without scripts or links: tables, bars and histograms as HTML and SVG text."""

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from util.images import Frame

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff; }
h1, td, figcaption { overflow-wrap: anywhere } .wide { overflow-x: auto }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem } p, figcaption { max-width: 50rem }
table { border-collapse: collapse } th, td { padding: .15rem .7rem .15rem 0; text-align: left }
th { border-bottom: 1px solid #999; font-weight: 600 } td.number, th.number { text-align: right;
  font-variant-numeric: tabular-nums }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem } figure { margin: 0; width: 20rem } figure img { width: 100% }
figcaption { font-size: .85rem } svg text { font: 11px system-ui, sans-serif; fill: #444 } .note { color: #666 }
"""
BAR_COLOUR = "#3a78b5"
CHART_WIDTH, CHART_HEIGHT, MARGIN = 300, 110, 16  # pixels
NUM_BINS = 20
JPEG_QUALITY = 80


def document(title: str, sections: Sequence[str]) -> str:
    """Returns a whole page."""
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def section(heading: str, *content: str) -> str:
    """Returns a heading and the content under it."""
    return f"<h2>{escape(heading)}</h2>\n" + "\n".join(content)


def note(text: str) -> str:
    """Returns a remark."""
    return f'<p class="note">{escape(text)}</p>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str | float | int]]) -> str:
    """Returns a table; numbers are right-aligned, fractions have four digits, an empty text is a missing number."""
    columns = range(len(heads))
    is_number = [all(row[column] == "" or isinstance(row[column], float | int) for row in rows) for column in columns]
    kinds = [' class="number"' if number else "" for number in is_number]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for text, kind in zip(heads, kinds, strict=True))
    lines = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(value)}</td>" for value, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>\n{lines}</table></div>'


def histogram(name: str, values: NDArray[np.float64]) -> str:
    """Returns an SVG histogram of values in [0, 1], in twenty bins."""
    counts, _ = np.histogram(values, NUM_BINS, (0, 1))
    width = CHART_WIDTH / NUM_BINS
    bars = "".join(
        f'<rect x="{width * number + 1:.1f}" y="{MARGIN + CHART_HEIGHT - height:.1f}" width="{width - 2:.1f}" '
        f'height="{height:.1f}" fill="{BAR_COLOUR}"><title>{number / NUM_BINS:.2f} to {(number + 1) / NUM_BINS:.2f}: '
        f"{count}</title></rect>"
        for number, count in enumerate(counts.tolist())
        for height in [CHART_HEIGHT * count / max(1, counts.max())]
    )
    bottom = MARGIN + CHART_HEIGHT + 12
    return (
        f'<svg width="{CHART_WIDTH}" height="{bottom + 4}" role="img" aria-label="histogram of {escape(name)}">'
        f'<text x="0" y="11">{escape(name)}, mean {values.mean():.3f}, median {np.median(values):.3f}</text>{bars}'
        f'<text x="0" y="{bottom}">0</text><text x="{CHART_WIDTH - 7}" y="{bottom}">1</text></svg>'
    )


def figure(image: Frame, caption: str) -> str:
    """Returns an image [H, W, 3], embedded in the page, with a caption."""
    jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    data = base64.b64encode(jpeg.tobytes()).decode()
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def row(pieces: Sequence[str]) -> str:
    """Returns elements side by side, as many as fit the width of the page."""
    return '<div class="row">' + "\n".join(pieces) + "</div>"


def escape(text: str) -> str:
    """Escapes text for HTML."""
    return html.escape(text)


def _cell(value: str | float | int) -> str:
    return f"{value:.4f}" if isinstance(value, float) else escape(str(value))
