"""Measure and draw how octfast's modules hang together, from their import lines.

python docs/house.py                 print lines, modules, arrows and circles of this checkout
python docs/house.py FOLDER          the same of another checkout
python docs/house.py --draw          also draw docs/images/house.png
python docs/house.py --files         also print which files import each module
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "house.png"
ROOMS = ("data", "model", "run", "train", "assess", "deploy", "cli")
Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """The modules of a checkout by their full names; a folder's `__init__` has the folder's name."""
    files = sorted((root / "octfast").rglob("*.py"))
    return {".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(found: Mapping[str, Path]) -> dict[str, set[str]]:
    """The modules of octfast that each module imports, at its top or inside a function.

    `octfast` itself is nobody's: it gives public names when they are asked for, and its imports are for type checkers.
    """
    graph: dict[str, set[str]] = {name: set() for name in found}
    for name, file in found.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            wanted = []
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                # `from package import module` means the module, `from module import name` what holds the name.
                wanted = [
                    full if (full := f"{node.module}.{alias.name}") in found else node.module for alias in node.names
                ]
            graph[name] |= {target for target in wanted if target in found and target not in (name, "octfast")}
    return graph


def box_of(name: str) -> str:
    """The folder inside its room that a module is in, else the module itself, as room.box."""
    parts = name.split(".")
    return ".".join(parts[1:3]) if len(parts) > 1 else ""


def boxed(graph: Graph) -> dict[str, set[str]]:
    """The arrows between folders; a module that is in no folder stands for itself."""
    boxes: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph.items():
        box = box_of(name)
        boxes[box] |= {other for target in targets if (other := box_of(target)) != box}
    return dict(boxes)


def circles(graph: Graph) -> list[list[str]]:
    """Groups of nodes that can all be reached from each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = [*graph[start]]
        while todo:
            if (node := todo.pop()) not in seen:
                seen.add(node)
                todo += graph.get(node, ())
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, ())) | {a} for a in graph if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def measure(root: Path) -> str:
    """The numbers of a checkout, as lines of text."""
    found = modules(root)
    graph = imports(found)
    boxes = boxed(graph)
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in found.items()}
    tests = sum(len(f.read_text(encoding="utf-8").splitlines()) for f in (root / "tests").rglob("*.py"))
    own = {n: f for n, f in found.items() if f.name != "__init__.py"}
    folders = Counter(file.parent.relative_to(root / "octfast").as_posix() for file in own.values())
    largest = ", ".join(f"{folder} {count}" for folder, count in folders.most_common(3))
    arrows = sum(map(len, graph.values()))
    out = [
        f"lines {sum(lines.values()):,} in octfast, {tests:,} in tests; {len(own)} modules in {len(folders)} folders",
        f"largest folders: {largest} modules",
        f"arrows {arrows} between modules, {sum(map(len, boxes.values()))} between folders",
        "",
        f"{'room':<8}{'lines':>7}{'modules':>9}{'boxes':>7}{'arrows inside: modules':>24}{'boxes':>7}{'circles':>9}",
    ]
    for room in (r for r in ROOMS if f"octfast.{r}" in found):
        mine = {n for n in graph if n.split(".")[1:2] == [room]}
        inside = {n: graph[n] & mine for n in mine}
        between = {b: {o for o in t if o.split(".")[0] == room} for b, t in boxes.items() if b.split(".")[0] == room}
        between.pop(room, None)
        out.append(
            f"{room:<8}{sum(lines[n] for n in mine):>7,}{len(mine & own.keys()):>9}{len(between):>7}"
            f"{sum(map(len, inside.values())):>24}{sum(map(len, between.values())):>7}{len(circles(between)):>9}"
        )
    for what, each in (("modules", graph), ("folders", boxes)):
        out += ["", f"circles of {what}: {len(circles(each)) or 'none'}"]
        out += [f"  {' <-> '.join(group)}" for group in circles(each)]
    return "\n".join(out)


def ordered(nodes: Iterable[str], graph: Graph) -> list[str]:
    """Nodes sorted so that each stands after those that it imports, as far as there are no circles."""
    left, out = sorted(nodes), []
    while left:
        ready = [n for n in left if not (graph.get(n, set()) & set(left) - {n})] or left[:1]
        out += ready
        left = [n for n in left if n not in ready]
    return out


def draw(root: Path, file: Path) -> None:
    """Draw the rooms from left to right, each with its folders, and an arrow from what imports to what it imports."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    found = modules(root)
    graph = imports(found)
    boxes = boxed(graph)
    counts = Counter(box_of(n) for n, f in found.items() if f.name != "__init__.py")
    colours = dict(
        zip(ROOMS, ("#2a6f97", "#3a7d44", "#8a6d3b", "#b5651d", "#7b4b94", "#b23a48", "#555555"), strict=True)
    )
    width, height, wide, gap = 2.9, 0.55, 1.75, 0.16
    fig = Figure(figsize=(16, 8.6), facecolor="white")
    FigureCanvasAgg(fig)
    ax = fig.add_axes((0.01, 0.01, 0.98, 0.98))
    ax.axis("off")

    def box(x: float, y: float, w: float, h: float, **how: object) -> None:
        ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.08", **how))

    def arrow(start: tuple[float, float], end: tuple[float, float], bend: float, **how: object) -> None:
        shape = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 1, "linewidth": 1, **how}
        ax.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **shape))

    deepest = 0.0
    for column, room in enumerate(ROOMS):
        inside = {b: {t for t in boxes[b] if t.startswith(f"{room}.")} for b in boxes if b.startswith(f"{room}.")}
        order = ordered(inside, inside)
        # The command line has a module a command and little between them: two columns, and no arrows.
        columns = 2 if room == "cli" else 1
        rows = -(-len(order) // columns)
        x, colour = column * width, colours[room]
        tall = rows * (height + gap) + gap
        deepest = max(deepest, tall)
        box(
            *(x - 0.12, -tall, width - 0.28 + (columns - 1) * 0.8, tall + 0.75),
            **{"facecolor": colour, "edgecolor": "none", "alpha": 0.10},
        )
        ax.text(x, 0.33, f"{room}/", fontsize=15, weight="bold", color=colour, va="center")
        spots = {}
        for number, name in enumerate(order):
            y = -(number % rows + 1) * (height + gap)
            left = x + number // rows * (wide - 0.12)
            across = wide if columns == 1 else wide - 0.25
            folder = f"octfast.{name}" in found and found[f"octfast.{name}"].name == "__init__.py"
            box(
                *(left, y, across, height),
                **{"facecolor": "white", "edgecolor": colour, "linewidth": 1.8 if folder else 0.8},
            )
            label, weight = name.split(".")[1] + ("/" if folder else ""), "bold" if folder else "normal"
            ax.text(left + 0.08, y + height / 2, label, fontsize=10.5, va="center", weight=weight)
            if folder:
                at = left + across - 0.08
                ax.text(at, y + height / 2, counts[name], fontsize=9, va="center", ha="right", color=colour)
            spots[name] = y + height / 2
        for name, targets in inside.items() if columns == 1 else ():
            for target in sorted(targets):
                start, end = spots[name] + 0.12, spots[target] - 0.12
                # The longer an arrow, the further out it goes, up to the edge of its room.
                out = 0.2 + 0.5 * abs(end - start) / tall
                arrow((x + wide, start), (x + wide, end), 2.4 * out / abs(end - start), color=colour, alpha=0.65)

    # Above, an arrow a pair of rooms; thicker where more of their modules import.
    pairs = Counter(
        (a.split(".")[1], b.split(".")[1])
        for a, targets in graph.items()
        for b in targets
        if a.count(".") and b.count(".")
    )
    for (a, b), many in sorted(pairs.items()):
        if a != b and a in ROOMS and b in ROOMS:
            i, j = ROOMS.index(a), ROOMS.index(b)
            start, end = i * width + 0.75 - 0.1 * (i - j - 1), j * width + 1.25 + 0.1 * (i - j - 1)
            bend = 0.22 if i > j else -0.22
            arrow((start, 0.78), (end, 0.78), bend, color=colours[a], alpha=0.7, linewidth=0.6 + many / 14)
    beside = sorted(
        n.split(".")[1]
        for n in found
        if n.count(".") == 1 and f"octfast.{n.split('.')[1]}" == n and found[n].name != "__init__.py"
    )
    text = (
        f"Beside the rooms: {', '.join(n for n in beside if n != '__main__')}.  "
        "An arrow goes from what imports to what it imports; a number counts the modules of a folder.\n"
        "Not drawn: arrows inside cli/, where root imports every command and most commands import options."
    )
    ax.text(-0.12, -deepest - 0.2, text, fontsize=11, va="top", color="#333333", linespacing=1.6)
    ax.set_xlim(-0.2, len(ROOMS) * width + 0.65)
    ax.set_ylim(-deepest - 1.9, 5.8)
    fig.set_size_inches(16, 0.31 * (deepest + 7.7))
    file.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(file, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, help="a checkout of octfast")
    parser.add_argument("--draw", action="store_true", help="draw docs/images/house.png")
    parser.add_argument("--files", action="store_true", help="print which files import each module")
    wanted = parser.parse_args()
    print(measure(wanted.folder.resolve()))
    if wanted.files:
        graph = imports(modules(wanted.folder.resolve()))
        for name in graph:
            users = sorted(user for user in graph if name in graph[user])
            print(f"\n{name}\n  " + "\n  ".join(users) if users else f"\n{name}\n  nobody")
    if wanted.draw:
        draw(wanted.folder.resolve(), PICTURE)
        print(f"\n{PICTURE}")


if __name__ == "__main__":
    main()
