"""Charts as SVG, drawn here so that a page needs no script for them. Pure. Colours are the style sheet's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

WIDTH, HEIGHT = 560, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 8, 10, 22


@dataclass(frozen=True, slots=True)
class Point:
    """A moment and a value that is not negative."""

    at: datetime
    value: float


def draw_chart(title: str, points: Sequence[Point], write: Callable[[float], str]) -> Markup:
    """Return a line with a dot for every point; write: how values are written. It begins at zero."""
    if not points:
        return Markup('<p class="empty">Nothing to draw yet.</p>')
    top = max(point.value for point in points) or 1.0
    first, last = points[0].at.timestamp(), points[-1].at.timestamp()
    span = (last - first) or 1.0
    inner = (WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM)
    places = [
        (_LEFT + inner[0] * (point.at.timestamp() - first) / span, _TOP + inner[1] * (1 - point.value / top))
        for point in points
    ]
    label = f"{title}: {len(points)} points, the last {write(points[-1].value)}, the highest {write(top)}"
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, label),
        *[_rule(share, inner[1], write(top * share)) for share in (0.0, 0.5, 1.0)],
        Markup('<polyline class="line" points="{}"/>').format(" ".join(f"{x:.1f},{y:.1f}" for x, y in places)),
        *[
            Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.5"><title>{} UTC: {}</title></circle>').format(
                x, y, point.at.strftime("%Y-%m-%d %H:%M"), write(point.value)
            )
            for (x, y), point in zip(places, points, strict=True)
        ],
        _date(_LEFT, "start", points[0].at),
        _date(WIDTH - _RIGHT, "end", points[-1].at),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def _rule(share: float, height: float, text: str) -> Markup:
    y = _TOP + height * (1 - share)
    return Markup(
        '<line class="rule" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
        '<text class="label" x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>'
    ).format(_LEFT, WIDTH - _RIGHT, y, _LEFT - 6, y + 4, text)


def _date(x: float, anchor: str, moment: datetime) -> Markup:
    return Markup('<text class="label" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        x, HEIGHT - 6, anchor, moment.strftime("%m-%d %H:%M")
    )
