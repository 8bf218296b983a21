"""The few shapes that the pictures are made of, as SVG that follows the reader's light or dark mode.

The rule: the same calls give the same bytes, so that a test can tell whether a picture is up to date.
"""

from __future__ import annotations

from html import escape

STYLE = """
  svg { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 14px }
  .paper { fill: #ffffff; stroke: #d5dae1 }
  .box { fill: #f1f4f8; stroke: #5b6b7f; stroke-width: 1.2 }
  .group { fill: none; stroke: #9aa7b6; stroke-width: 1.2; stroke-dasharray: 5 4 }
  .accent { fill: #dcf1e4; stroke: #2c7a4b; stroke-width: 1.5 }
  .warn { fill: #fbe6e1; stroke: #b1442c; stroke-width: 1.2 }
  .bar { fill: #8a97a6 }
  .bar-accent { fill: #2c7a4b }
  .axis { stroke: #9aa7b6; stroke-width: 1 }
  .arrow { stroke: #44515f; stroke-width: 1.4; fill: none; marker-end: url(#head) }
  .head { fill: #44515f }
  text { fill: #1c2733 }
  .small { font-size: 12px; fill: #4c5a69 }
  .title { font-weight: 600 }
  .mono { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12.5px }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #14181d; stroke: #39424d }
    .box { fill: #222932; stroke: #8b99a9 }
    .group { stroke: #65727f }
    .accent { fill: #163b26; stroke: #5fc488 }
    .warn { fill: #44211a; stroke: #e88a73 }
    .bar { fill: #77859a }
    .bar-accent { fill: #5fc488 }
    .axis { stroke: #65727f }
    .arrow { stroke: #b4c0cc }
    .head { fill: #b4c0cc }
    text { fill: #e8edf2 }
    .small { fill: #aebac6 }
  }
"""


class Picture:
    """One SVG of a fixed size, on paper of its own, so that it is readable on a page of either color."""

    def __init__(self, width: int, height: int, says: str) -> None:
        self.size = (width, height)
        self.says = says
        self._shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, *lines: str, kind: str = "box") -> None:
        """A rectangle with lines of text in its middle; the first one stands out, the others are small."""
        self._shapes.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7"/>')
        top = y + height / 2 - (len(lines) - 1) * 8.5 + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + number * 17, line, kind="small" if number else "title", anchor="middle")

    def group(self, x: float, y: float, width: float, height: float, name: str) -> None:
        """A dashed frame with a name in its upper left corner."""
        self.box(x, y, width, height, kind="group")
        self.text(x + 12, y + 20, name, kind="small")

    def text(self, x: float, y: float, line: str, *, kind: str = "", anchor: str = "start") -> None:
        """One line of text."""
        self._shapes.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(line)}</text>')

    def arrow(
        self,
        *points: tuple[float, float],
        label: str = "",
        at: tuple[float, float] | None = None,
        anchor: str = "middle",
    ) -> None:
        """A line through points that ends in a head, with a label at a place."""
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        self._shapes.append(f'<path class="arrow" d="M{path}"/>')
        if label and at:
            self.text(*at, label, kind="small", anchor=anchor)

    def bar(self, x: float, y: float, width: float, height: float, *, kind: str = "bar") -> None:
        """One bar of a chart."""
        self._shapes.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """One line of an axis."""
        self._shapes.append(f'<line class="axis" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>')

    def svg(self) -> str:
        """The whole file."""
        width, height = self.size
        shapes = "\n".join(self._shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">\n'
            f"<title>{escape(self.says)}</title>\n<style>{STYLE}</style>\n"
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
            '<path class="head" d="M0 0 L10 5 L0 10 z"/></marker></defs>\n'
            f'<rect class="paper" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>\n{shapes}\n</svg>\n'
        )
