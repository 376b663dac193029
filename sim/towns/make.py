"""Makes the shipped towns: `python -m sim.towns.make FOLDER`, with netgenerate and netconvert (eclipse-sumo) on PATH.

Not needed to drive. Each town is one network NAME.net.xml.gz: lanes, junctions with right of way and lights, sidewalks
and crossings. The same version of the tools makes the same bytes.
"""

import argparse
import gzip
import math
import random
import re
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sensors.errors import InputError

# Sidewalks and crossings everywhere, arcs through junctions as fine polylines.
COMMON = """--default.lanewidth 3.3 --default.sidewalk-width 2.5 --default.junctions.radius 10 --no-turnarounds true
    --junctions.internal-link-detail 16 --junctions.corner-detail 6 --walkingareas true --crossings.guess true
    --tls.default-type static --tls.yellow.time 3 --tls.allred.time 2
    --sidewalks.guess true --sidewalks.guess.max-speed 16 --precision 2"""
GENERATED = {
    "grid": """--grid --grid.x-number 5 --grid.y-number 4 --grid.x-length 140 --grid.y-length 115 --default.lanenumber 2
    --default.speed 13.89 --tls.guess true --tls.guess.threshold 30 --seed 3""",
    "irregular": """--rand --rand.iterations 70 --rand.min-distance 90 --rand.max-distance 160 --rand.min-angle 60
    --rand.neighbor-dist3 5 --rand.neighbor-dist4 6 --rand.neighbor-dist2 1 --rand.connectivity 0.98 --seed 4
    --default.speed 11.11 --default.lanenumber 1 --tls.guess true --tls.guess.threshold 20""",
    # The next ones are only learned from: streets out of true, narrow angles, few lights.
    "blocks": """--grid --grid.x-number 6 --grid.y-number 5 --grid.x-length 105 --grid.y-length 90
    --perturb-x norm(0,11) --perturb-y norm(0,11) --default.speed 11.11 --default.lanenumber 1
    --tls.guess true --tls.guess.threshold 40 --seed 6""",
    "suburb": """--rand --rand.iterations 90 --rand.min-distance 70 --rand.max-distance 190 --rand.min-angle 42
    --rand.neighbor-dist3 6 --rand.neighbor-dist4 4 --rand.neighbor-dist2 1 --rand.neighbor-dist5 1
    --rand.connectivity 0.98 --rand.random-lanenumber true --rand.random-priority true --seed 23
    --default.speed 13.89 --default.lanenumber 2 --tls.guess true --tls.guess.threshold 90""",
    "star": """--spider --spider.arm-number 6 --spider.circle-number 3 --spider.space-radius 105
    --perturb-x norm(0,9) --perturb-y norm(0,9) --default.speed 13.89 --default.lanenumber 2
    --tls.guess true --tls.guess.threshold 100 --seed 9""",
    "terrace": """--grid --grid.x-number 5 --grid.y-number 6 --grid.x-length 120 --grid.y-length 80
    --perturb-x norm(0,17) --perturb-y norm(0,14) --default.speed 13.89 --default.lanenumber 1
    --tls.guess true --tls.guess.threshold 45 --seed 11""",
    "hamlet": """--rand --rand.iterations 80 --rand.min-distance 60 --rand.max-distance 150 --rand.min-angle 38
    --rand.neighbor-dist3 6 --rand.neighbor-dist4 5 --rand.neighbor-dist2 1 --rand.neighbor-dist5 1
    --rand.connectivity 0.98 --rand.random-priority true --seed 31 --default.speed 11.11 --default.lanenumber 1
    --tls.guess true --tls.guess.threshold 25""",
    "valley": """--rand --rand.iterations 80 --rand.min-distance 85 --rand.max-distance 180 --rand.min-angle 45
    --rand.neighbor-dist3 5 --rand.neighbor-dist4 6 --rand.neighbor-dist2 1 --rand.neighbor-dist5 1
    --rand.connectivity 0.98 --rand.random-lanenumber true --rand.random-priority true --seed 37
    --default.speed 13.89 --default.lanenumber 2 --tls.guess true --tls.guess.threshold 60""",
}
RING_M, ARM_M, CORNER_M, MOTORWAY_M = 22.0, 150.0, 160.0, 340.0  # distances from the middle of the ring town
METRES_PER_DEGREE = 111_320.0


def tool(name: str, *arguments: str) -> None:
    """Run a network tool; its absence is an InputError, its failure too, with what it printed."""
    program = shutil.which(name)
    if program is None:
        raise InputError("sim.towns.make", name, "not on PATH", "SUMO's network tools", "pip install eclipse-sumo")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(name, "arguments", done.stderr.strip()[-500:], "a network that the tool accepts")


def ring_town(folder: Path) -> list[str]:
    """Plain nodes and edges: a roundabout with four arms, arterials with lights around it, a motorway with ramps."""
    nodes, edges = {}, []

    def node(name: str, radius: float, degrees: float, kind: str) -> None:
        angle = math.radians(degrees)
        nodes[name] = (600 + radius * math.cos(angle), 600 + radius * math.sin(angle), kind)

    def edge(a: str, b: str, lanes: int, speed: float, priority: int, walk: bool, shape: str = "") -> None:
        edges.append((f"{a}-{b}", a, b, lanes, speed, priority, walk, shape))

    for k in range(4):
        node(f"ring{k}", RING_M, 90 * k, "priority")
        node(f"arm{k}", ARM_M, 90 * k, "traffic_light")
        node(f"corner{k}", CORNER_M * math.sqrt(2), 90 * k + 45, "traffic_light" if k % 2 == 0 else "priority")
    for k in range(4):
        arc = _arc(RING_M, range(90 * k, 90 * k + 91, 10))
        edge(f"ring{k}", f"ring{(k + 1) % 4}", 1, 8.33, 5, False, arc)
        for a, b in ((f"ring{k}", f"arm{k}"), (f"arm{k}", f"ring{k}")):
            edge(a, b, 1, 11.11, 3, True)
        for a, b in ((f"arm{k}", f"corner{k}"), (f"corner{k}", f"arm{(k + 1) % 4}")):
            edge(a, b, 2, 13.89, 4, True)
            edge(b, a, 2, 13.89, 4, True)
    # The motorway runs clockwise, so that the town and the ramps lie on its right.
    for k, degrees in enumerate((75, 15, -105, -165)):
        node(f"motorway{k}", MOTORWAY_M, degrees, "priority")
    for k, (start, end) in enumerate(((75, 15), (15, -105), (-105, -165), (-165, -285))):
        arc = _arc(MOTORWAY_M, range(start, end - 1, -5))
        edge(f"motorway{k}", f"motorway{(k + 1) % 4}", 2, 22.22, 9, False, arc)
    for k, corner in ((0, "corner0"), (2, "corner2")):
        edge(f"motorway{k}", corner, 1, 13.89, 4, False)
        edge(corner, f"motorway{k + 1}", 1, 13.89, 4, False)
    _write_plain(folder, nodes, edges)
    return [
        "-n",
        str(folder / "n.nod.xml"),
        "-e",
        str(folder / "e.edg.xml"),
        "--ramps.guess",
        "--ramps.ramp-length",
        "90",
    ]


def _arc(radius: float, degrees: range) -> str:
    angles = [math.radians(d) for d in degrees]
    return " ".join(f"{600 + radius * math.cos(a):.2f},{600 + radius * math.sin(a):.2f}" for a in angles)


def _write_plain(folder: Path, nodes: dict, edges: list) -> None:
    """The files of netconvert's plain format."""
    lines = [f'<node id="{n}" x="{x:.2f}" y="{y:.2f}" type="{kind}"/>' for n, (x, y, kind) in nodes.items()]
    (folder / "n.nod.xml").write_text("<nodes>\n" + "\n".join(lines) + "\n</nodes>\n")
    lines = []
    for name, a, b, lanes, speed, priority, walk, shape in edges:
        more = f' shape="{shape}"' if shape else ""
        if not walk:
            more += ' disallow="pedestrian"'
        lines.append(
            f'<edge id="{name}" from="{a}" to="{b}" numLanes="{lanes}" speed="{speed}" priority="{priority}"{more}/>'
        )
    ring = [f"ring{k}" for k in range(4)]
    names = [f"{a}-{b}" for a, b in pairwise([*ring, ring[0]])]
    lines.append(f'<roundabout nodes="{" ".join(ring)}" edges="{" ".join(names)}"/>')
    (folder / "e.edg.xml").write_text("<edges>\n" + "\n".join(lines) + "\n</edges>\n")


@dataclass(frozen=True)
class OldTown:
    """Streets of an old town that never was.

    oval         height over width
    main_spokes  the wide ones, by number; spokes_to_middle: those that do not end at the inner ring
    """

    seed: int
    spokes: int
    radii_m: tuple[float, float, float]
    oval: float
    main_spokes: tuple[int, ...]
    spokes_to_middle: tuple[int, ...]


OLD_TOWNS = {
    "oldtown": OldTown(5, 7, (75.0, 185.0, 310.0), 0.85, (0, 3), (0, 2, 3, 5)),
    "market": OldTown(8, 5, (80.0, 170.0, 275.0), 1.15, (1, 3), (0, 1, 3)),
    "harbour": OldTown(13, 9, (105.0, 210.0, 330.0), 0.7, (2, 6), (0, 2, 4, 6)),
    "abbey": OldTown(21, 6, (70.0, 160.0, 265.0), 1.05, (0, 2), (0, 2, 4)),
    "castle": OldTown(34, 8, (90.0, 190.0, 320.0), 0.8, (1, 5), (1, 3, 5, 6)),
    "mill": OldTown(55, 7, (85.0, 175.0, 300.0), 1.2, (2, 5), (0, 2, 5, 6)),
    "fair": OldTown(89, 5, (65.0, 150.0, 255.0), 0.9, (0, 3), (0, 1, 3)),
    "quay": OldTown(144, 6, (80.0, 200.0, 305.0), 0.75, (1, 4), (1, 2, 4)),
}


def osm_town(folder: Path, town: OldTown) -> list[str]:
    """An OSM file of an old town: rings and spokes out of true, one-way lanes, signals, speed limits."""
    rng = random.Random(town.seed)
    nodes, ways = {}, []

    def node(x: float, y: float, tags: str = "") -> int:
        nodes[len(nodes) + 1] = (x, y, tags)
        return len(nodes)

    signal = '<tag k="highway" v="traffic_signals"/>'
    spokes, radii = town.spokes, town.radii_m
    middle = node(0, 0, signal)
    grid = []
    for k in range(spokes):
        angle = 2 * math.pi * (k + rng.uniform(-0.13, 0.13)) / spokes
        row = []
        for r, radius in enumerate(radii):
            out = radius * rng.uniform(0.92, 1.1)
            row.append(
                node(out * math.cos(angle), town.oval * out * math.sin(angle), signal if r == 1 and k % 2 else "")
            )
        grid.append(row)
    for k, row in enumerate(grid):
        kind = "secondary" if k in town.main_spokes else "residential"
        ways.append(
            ([middle, *row] if k in town.spokes_to_middle else row, kind, 50 if kind == "secondary" else 30, False)
        )
    for r, kind, limit in ((0, "residential", 30), (1, "tertiary", 50), (2, "secondary", 60)):
        for k in range(spokes):
            a, b = grid[k][r], grid[(k + 1) % spokes][r]
            (ax, ay, _), (bx, by, _) = nodes[a], nodes[b]
            bend = node(0.53 * (ax + bx), 0.53 * (ay + by))  # streets are not straight
            ways.append(([a, bend, b], kind, limit, r == 0))
    text = ['<osm version="0.6">']
    for name, (x, y, tags) in nodes.items():
        lat = 48.1 + y / METRES_PER_DEGREE
        lon = 11.5 + x / METRES_PER_DEGREE / math.cos(math.radians(48.1))
        text.append(f'<node id="{name}" visible="true" version="1" lat="{lat:.7f}" lon="{lon:.7f}">{tags}</node>')
    for k, (way, kind, limit, oneway) in enumerate(ways):
        refs = "".join(f'<nd ref="{n}"/>' for n in way)
        tags = {"highway": kind, "maxspeed": limit, "lanes": 1 if oneway else 4 if kind == "secondary" else 2}
        if oneway:
            tags["oneway"] = "yes"
        pairs = "".join(f'<tag k="{key}" v="{value}"/>' for key, value in tags.items())
        text.append(f'<way id="{k + 1}" visible="true" version="1">{refs}{pairs}</way>')
    (folder / "town.osm").write_text("\n".join([*text, "</osm>\n"]))
    return ["--osm-files", str(folder / "town.osm"), "--geometry.remove", "true", "--junctions.join", "true"]


def blind_alleys(path: Path) -> list[str]:
    """Edges from which one cannot drive on for ever, or which nothing leads to: found by peeling them off."""
    root = ET.parse(path).getroot()
    roads = {e.get("id") for e in root.iter("edge") if e.get("function") is None}
    pairs = {(c.get("from"), c.get("to")) for c in root.iter("connection")}
    pairs = {(a, b) for a, b in pairs if a in roads and b in roads}
    left = set(roads)
    while True:
        there = [(a, b) for a, b in pairs if a in left and b in left]
        kept = {a for a, _ in there} & {b for _, b in there}
        if kept == left:
            return sorted(roads - left)
        left = kept


def make(name: str, folder: Path) -> Path:
    """Write one town's network into the folder; returns its path."""
    with tempfile.TemporaryDirectory() as scratch:
        first, out = Path(scratch) / "first.net.xml", Path(scratch) / "net.xml"
        common = [*COMMON.split(), "--output-file", str(first)]
        if name in GENERATED:
            tool("netgenerate", *GENERATED[name].split(), *common)
        elif name in OLD_TOWNS:
            tool("netconvert", *osm_town(Path(scratch), OLD_TOWNS[name]), *common)
        else:
            tool("netconvert", *ring_town(Path(scratch)), *common)
        # The margin keeps map rasters of a town in the positive quadrant.
        again = [*COMMON.split(), "--offset.disable-normalization", "true", "--offset.x", "120", "--offset.y", "120"]
        if blind := blind_alleys(first):
            again += ["--remove-edges.explicit", ",".join(blind)]
        tool("netconvert", "--sumo-net-file", str(first), *again, "--output-file", str(out))
        text = re.sub(r"<!--.*?-->\s*", "", out.read_text(), flags=re.DOTALL)  # the date and this machine's paths
    path = folder / f"{name}.net.xml.gz"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return path


TOWNS = ("ring", *GENERATED, *OLD_TOWNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the networks go")
    folder = parser.parse_args().folder
    for name in TOWNS:
        path = make(name, folder)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
