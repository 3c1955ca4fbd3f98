"""Draw docs/images/architecture.svg from the imports between rooms, and check docs/architecture.md against the code.

A room is a folder of latentwire/ or kat/; a module next to the rooms is drawn like a room. Nothing is imported: the
imports are read from the source.

python docs/scripts/architecture.py           write the picture
python docs/scripts/architecture.py --check   exit with 1 if the picture or the page is out of date
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("latentwire", "kat")
Edge = tuple[str, str]  # importer, imported

BOX_WIDTH, BOX_HEIGHT, GAP, LAYER_GAP = 124.0, 40.0, 22.0, 44.0
DUMMY_WIDTH = 14.0  # room that a long arrow takes in the layers that it crosses
STRAIGHT = 8.0  # how much more the parts of a long arrow attract each other than their ends do
PANEL_PADDING, PANEL_GAP, TOP, MARGIN = 22.0, 92.0, 96.0, 16.0
COLOURS = {"latentwire": ("#f4f8fc", "#dceaf7", "#2f5f93"), "kat": ("#fdf8f1", "#f9e6cb", "#8f5410")}


def rooms_of(root: Path, package: str) -> dict[str, list[Path]]:
    """Return the rooms of a package with their modules; a module next to the rooms is a room of its own."""
    found: dict[str, list[Path]] = {}
    for path in sorted((root / package).rglob("*.py")):
        first, *deeper = path.relative_to(root / package).parts
        if deeper:
            found.setdefault(first, []).append(path)
        elif first != "__init__.py":
            found[first] = [path]
    return found


def imported(path: Path) -> Iterator[str]:
    """Yield the names that a module imports, in full; of `from a import b` the name a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges_of(root: Path, rooms: dict[str, dict[str, list[Path]]]) -> set[Edge]:
    """Return the imports between rooms as pairs 'package/room', importer first."""
    found: set[Edge] = set()
    for package, own in rooms.items():
        for room, paths in own.items():
            for name in (name for path in paths for name in imported(path)):
                other, _, rest = name.partition(".")
                target = rest.split(".")[0]
                target = target if target in rooms.get(other, {}) else f"{target}.py"
                if target in rooms.get(other, {}) and (other, target) != (package, room):
                    found.add((f"{package}/{room}", f"{other}/{target}"))
    return found


def reachable(edges: Iterable[Edge]) -> dict[str, set[str]]:
    """Return what each node reaches along the edges."""
    after: dict[str, set[str]] = {}
    for start, end in edges:
        after.setdefault(start, set()).add(end)
    found: dict[str, set[str]] = {}
    for start in after:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = after.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        found[start] = seen
    return found


def split_cycles(edges: set[Edge]) -> tuple[set[Edge], set[Edge]]:
    """Return the edges that are part of no cycle, and those that are."""
    reach = reachable(edges)
    cyclic = {(a, b) for a, b in edges if a in reach.get(b, set())}
    return edges - cyclic, cyclic


def reduced(edges: set[Edge]) -> set[Edge]:
    """Return the edges that no longer way implies; the edges have no cycle."""
    reach = reachable(edges)
    return {(a, b) for a, b in edges if not any(b in reach.get(middle, set()) for start, middle in edges if start == a)}


def layers_of(nodes: Iterable[str], edges: set[Edge]) -> dict[str, int]:
    """Return the layer of each node: 0 for one that imports nothing, else one above the highest that it imports."""
    below = {node: {b for a, b in edges if a == node} for node in nodes}
    found: dict[str, int] = {}

    def layer(node: str) -> int:
        if node not in found:
            found[node] = max((layer(other) + 1 for other in below[node]), default=0)
        return found[node]

    for node in below:
        layer(node)
    return found


@dataclass
class Layout:
    """Places of the nodes of one package: x of each node and dummy, the layers from the bottom, the arrows' ways."""

    x: dict[str, float]
    layers: list[list[str]]
    ways: dict[Edge, list[str]] = field(default_factory=dict)  # from importer to imported, dummies in between
    width: float = 0.0


def lay_out(nodes: list[str], edges: set[Edge]) -> Layout:
    """Place nodes in layers so that arrows point down and few of them cross (Sugiyama's method)."""
    level = layers_of(nodes, edges)
    layers: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for node in sorted(nodes):
        layers[level[node]].append(node)
    ways: dict[Edge, list[str]] = {}
    links: set[Edge] = set()  # upper, lower; between neighbouring layers
    for upper, lower in sorted(edges):
        way = [upper, *(f"{upper}>{lower}:{n}" for n in range(level[upper] - 1, level[lower], -1)), lower]
        for n, dummy in zip(range(level[upper] - 1, level[lower], -1), way[1:-1], strict=True):
            layers[n].append(dummy)
        links |= set(itertools.pairwise(way))
        ways[upper, lower] = way
    layers = _ordered(layers, links)
    x = _placed(layers, links)
    right = max(x[node] + _width(node) / 2 for layer in layers for node in layer)
    return Layout(x, layers, ways, right)


def _width(node: str) -> float:
    return DUMMY_WIDTH if ">" in node else BOX_WIDTH


def _crossings(layers: list[list[str]], links: set[Edge]) -> int:
    place = {node: i for layer in layers for i, node in enumerate(layer)}
    at = {node: n for n, layer in enumerate(layers) for node in layer}
    ends = [(at[a], place[a], place[b]) for a, b in links]
    pairs = ((p, q) for i, p in enumerate(ends) for q in ends[i + 1 :] if p[0] == q[0])
    return sum((p[1] - q[1]) * (p[2] - q[2]) < 0 for p, q in pairs)


def _ordered(layers: list[list[str]], links: set[Edge]) -> list[list[str]]:
    """Order each layer by the mean place of its neighbours, up and down in turn; keep the order that crosses least."""
    best = layers = [list(layer) for layer in layers]
    fewest = _crossings(best, links)
    for turn in range(24):
        down = turn % 2 == 0
        layers = [list(layer) for layer in layers]
        for n in range(1, len(layers)) if down else range(len(layers) - 2, -1, -1):
            fixed = {node: i for i, node in enumerate(layers[n - 1 if down else n + 1])}

            centres = []
            for i, node in enumerate(layers[n]):
                near = [fixed[b if a == node else a] for a, b in links if node in (a, b) and {a, b} & fixed.keys()]
                centres.append((sum(near) / len(near) if near else float(i), node))
            layers[n] = [node for _, node in sorted(centres)]
        if (count := _crossings(layers, links)) < fewest:
            best, fewest = layers, count
    return best


def _placed(layers: list[list[str]], links: set[Edge]) -> dict[str, float]:
    """Return x of each node: near the mean of its neighbours, in order and without overlap, from 0 rightwards."""
    near: dict[str, list[str]] = {node: [] for layer in layers for node in layer}
    for a, b in sorted(links):
        near[a].append(b)
        near[b].append(a)
    x: dict[str, float] = {}
    for layer in layers:
        for i, node in enumerate(layer):
            x[node] = (i - (len(layer) - 1) / 2) * (BOX_WIDTH + GAP)
    for _ in range(60):
        for layer in layers:
            for node, place in zip(layer, _apart(layer, [_wish(node, near[node], x) for node in layer]), strict=True):
                x[node] = place
    left = min(x[node] - _width(node) / 2 for node in x)
    return {node: place - left for node, place in x.items()}


def _wish(node: str, near: list[str], x: dict[str, float]) -> float:
    """Return the mean place of the neighbours; within a long arrow its own parts count most, so that it is straight."""
    weights = [STRAIGHT if ">" in node and ">" in other else 1.0 for other in near]
    return sum(w * x[other] for w, other in zip(weights, near, strict=True)) / sum(weights) if near else x[node]


def _apart(layer: list[str], wanted: list[float]) -> list[float]:
    """Return places as near as can be to those wanted, in the same order and without overlap.

    Neighbours that would overlap form a block at the mean of their wishes (pool adjacent violators).
    """
    offsets = [0.0]
    for left, right in itertools.pairwise(layer):
        offsets.append(offsets[-1] + (_width(left) + _width(right)) / 2 + GAP)
    blocks: list[tuple[float, int]] = []  # mean wish, nodes
    for wish, offset in zip(wanted, offsets, strict=True):
        mean, count = wish - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, size = blocks.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        blocks.append((mean, count))
    starts = [mean for mean, count in blocks for _ in range(count)]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]


def picture(root: Path) -> str:
    """Return the picture as SVG; the same for the same imports."""
    rooms = {package: rooms_of(root, package) for package in PACKAGES}
    edges = edges_of(root, rooms)
    parts: list[str] = []
    left, panels = MARGIN, {}
    for package in PACKAGES:
        own = {(a, b) for a, b in edges if a.startswith(package + "/") and b.startswith(package + "/")}
        forward, cyclic = split_cycles(own)
        layout = lay_out([f"{package}/{room}" for room in rooms[package]], reduced(forward))
        panels[package] = (left, layout, cyclic)
        left += layout.width + 2 * PANEL_PADDING + PANEL_GAP
    width = left - PANEL_GAP + MARGIN
    deepest = max(len(layout.layers) for _, layout, _ in panels.values())
    bottom = TOP + 34 + deepest * (BOX_HEIGHT + LAYER_GAP) - LAYER_GAP + PANEL_PADDING
    for package, (start, layout, cyclic) in panels.items():
        parts += _panel(package, start, bottom, layout, cyclic, rooms[package])
    parts += _entries(panels, width)
    parts += _between(panels, edges, bottom)
    return "\n".join([*_head(width, bottom + MARGIN), *parts, "</svg>", ""])


def _head(width: float, height: float) -> list[str]:
    heads = [
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0,1 L10,5 L0,9 z" fill="{colour}"/></marker>'
        for name, colour in (("arrow", "#5b6470"), ("cycle", "#c0392b"))
    ]
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.1f} {height:.1f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" font-family="system-ui, sans-serif">',
        "<title>Rooms of latentwire and kat, with arrows from importing to imported rooms</title>",
        f"<defs>{''.join(heads)}</defs>",
        f'<rect width="{width:.1f}" height="{height:.1f}" fill="#ffffff"/>',
    ]


def _text(x: float, y: float, words: str, size: int, colour: str = "#1c2733", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" font-weight="{weight}" '
        f'text-anchor="middle">{escape(words)}</text>'
    )


def _box(x: float, y: float, width: float, height: float, fill: str, stroke: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" '
        f'fill="{fill}" stroke="{stroke}"/>'
    )


def _line(points: list[tuple[float, float]], kind: str) -> str:
    """Return an arrow through points, upright at each of them."""
    (x, y), *rest = points
    path = [f"M{x:.1f},{y:.1f}"]
    for to_x, to_y in rest:
        middle = (y + to_y) / 2
        path.append(f"C{x:.1f},{middle:.1f} {to_x:.1f},{middle:.1f} {to_x:.1f},{to_y:.1f}")
        x, y = to_x, to_y
    colour = {"arrow": "#5b6470", "cycle": "#c0392b"}[kind]
    return f'<path d="{" ".join(path)}" fill="none" stroke="{colour}" stroke-width="1.3" marker-end="url(#{kind})"/>'


def _panel(
    package: str, start: float, bottom: float, layout: Layout, cyclic: set[Edge], rooms: dict[str, list[Path]]
) -> list[str]:
    back, fill, stroke = COLOURS[package]
    left = start + PANEL_PADDING
    y_of = {
        node: bottom - PANEL_PADDING - BOX_HEIGHT - n * (BOX_HEIGHT + LAYER_GAP)
        for n, layer in enumerate(layout.layers)
        for node in layer
    }
    shown = [
        _box(start, TOP, layout.width + 2 * PANEL_PADDING, bottom - TOP, back, stroke),
        _text(start + PANEL_PADDING + layout.width / 2, TOP + 24, f"{package}/", 16, stroke, "bold"),
    ]
    for (upper, lower), way in sorted(layout.ways.items()):
        points = [(left + layout.x[upper], y_of[upper] + BOX_HEIGHT)]
        for dummy in way[1:-1]:
            points += [(left + layout.x[dummy], y_of[dummy]), (left + layout.x[dummy], y_of[dummy] + BOX_HEIGHT)]
        shown.append(_line([*points, (left + layout.x[lower], y_of[lower])], "arrow"))
    for a, b in sorted(cyclic):
        sign = 1 if y_of[a] <= y_of[b] else 0
        ends = [
            (left + layout.x[a], y_of[a] + sign * BOX_HEIGHT),
            (left + layout.x[b], y_of[b] + (1 - sign) * BOX_HEIGHT),
        ]
        shown.append(_line(ends, "cycle"))
    for room, paths in sorted(rooms.items()):
        node = f"{package}/{room}"
        x, y = left + layout.x[node], y_of[node]
        modules = sum(path.name != "__init__.py" for path in paths)
        shown.append(_box(x - BOX_WIDTH / 2, y, BOX_WIDTH, BOX_HEIGHT, fill, stroke))
        shown.append(_text(x, y + 18, room, 13, weight="bold"))
        count = f"{modules} module{'s' if modules != 1 else ''}"
        shown.append(_text(x, y + 32, "one module" if room.endswith(".py") else count, 10, "#51606f"))
    return shown


def _entries(panels: dict[str, tuple[float, Layout, set[Edge]]], width: float) -> list[str]:
    """Return the two programs above the packages whose tasks they start."""
    box = 190.0
    shown = [_box(width / 2 - box / 2, MARGIN, box, BOX_HEIGHT, "#f1f1ee", "#5c5c55"),
             _text(width / 2, MARGIN + 25, "run.py, train.py", 14, weight="bold")]  # fmt: skip
    for start, layout, _ in panels.values():
        centre = start + PANEL_PADDING + layout.width / 2
        side = width / 2 + (box / 4 if centre > width / 2 else -box / 4)
        shown.append(_line([(side, MARGIN + BOX_HEIGHT), (centre, TOP)], "arrow"))
    return shown


def _between(panels: dict[str, tuple[float, Layout, set[Edge]]], edges: set[Edge], bottom: float) -> list[str]:
    """Return one arrow for the imports from kat into latentwire, labelled with the rooms that it leads to."""
    used = sorted({b.partition("/")[2] for a, b in edges if a.startswith("kat/") and b.startswith("latentwire/")})
    right = panels["kat"][0]
    left = right - PANEL_GAP
    y = bottom - 60 - 15 * len(used)
    shown = [f'<path d="M{right:.1f},{y:.1f} L{left:.1f},{y:.1f}" fill="none" stroke="#5b6470" stroke-width="2" '
             'marker-end="url(#arrow)"/>', _text((left + right) / 2, y - 8, "imports", 11, "#51606f")]  # fmt: skip
    return shown + [_text((left + right) / 2, y + 18 + 15 * n, room, 12) for n, room in enumerate(used)]


def page_errors(root: Path) -> list[str]:
    """Return what docs/architecture.md has wrong: rooms without a row in its table, and paths that do not exist."""
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [f"{package}/{room}" for package in PACKAGES for room in rooms_of(root, package)]
    named = {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)}
    wrong = [f"docs/architecture.md: the table has no row for `{room}`" for room in rooms if room not in named]
    paths = re.findall(r"`((?:latentwire|kat|conf|tests)/[\w./]*)`", text)
    return wrong + [f"docs/architecture.md: {p} does not exist" for p in sorted(set(paths)) if not (root / p).exists()]


def main() -> int:
    """Write the picture, or check picture and page; return the exit status."""
    parser = argparse.ArgumentParser(description="Draw docs/images/architecture.svg from the imports.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if anything is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository to read")
    given = parser.parse_args()
    drawn = picture(given.root)
    target = given.root / "docs" / "images" / "architecture.svg"
    if not given.check:
        target.parent.mkdir(exist_ok=True)
        target.write_text(drawn, encoding="utf-8")
        return 0
    wrong = page_errors(given.root)
    if not target.exists() or target.read_text(encoding="utf-8") != drawn:
        wrong.append("docs/images/architecture.svg is out of date; run python docs/scripts/architecture.py")
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
