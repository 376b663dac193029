"""What render_gl keeps on the device: programs, growing buffers, the pool of meshes, the ground's paint."""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import moderngl
import numpy as np

from sensors.errors import InputError
from sim import gl_shaders
from sim.ground import COARSE_M, FINE_M, MAP_CELLS, TILE_CELLS, TILES, GroundTiles
from sim.roads import Surface
from sim.scene import GROUND, Backdrop, Scene
from sim.solids import LAMP_COLOUR, Faces
from sim.weather import SUN

HOW_TO_GET = "Get it by: apt-get install libegl1 libgl1 libgl1-mesa-dri (no GPU needed). Or take the renderer cv"
FINE_UNIT, COARSE_UNIT, NEAR_UNIT, RAIN_UNIT, RAYS_UNIT = range(5)  # texture units; near: fine, without mip levels
MIP_LEVELS = 6
FACE_REACH_M = 240.0  # solids further away than this are not drawn
FACE_VECTORS, SPARE_FACES = 5, 4096


@lru_cache(maxsize=1)
def open_gl() -> moderngl.Context:
    """This process's context, without a window; an InputError where there is none to get.

    One for all renderers, which free what they no longer use by `gc()` while it is current: what is freed under another
    context would be taken from that one.
    """
    try:
        context = moderngl.create_context(standalone=True, backend="egl", require=430)
    except Exception as error:  # glcontext raises bare Exception
        raise InputError("renderer", "gl", f"no OpenGL here ({error})", "OpenGL 4.3 on EGL", HOW_TO_GET) from error
    context.gc_mode = "context_gc"
    return context


def gl_name() -> str:
    """Who draws, for example "llvmpipe (LLVM 15.0.6, 256 bits), OpenGL 4.5 (Core Profile) Mesa 22.3.6"."""
    with open_gl() as gl:
        return f"{gl.info['GL_RENDERER']}, OpenGL {gl.info['GL_VERSION']}"


class Programs:
    """The compiled shaders, each compiled when it is first needed, and how quads are drawn.

    None has vertex attributes: all read their vertices by number. A program is a pair of gl_shaders and its #defines.
    """

    def __init__(self, gl: moderngl.Context):
        self._gl, self._capacity = gl, 0
        self._made: dict[tuple, tuple[moderngl.Program, moderngl.VertexArray]] = {}
        self._values = {
            "MAP_CELLS": str(MAP_CELLS),
            "TILE_CELLS": str(TILE_CELLS),
            "MAP_TILES": str(TILES),
            "TERRAIN": _vec3(GROUND["terrain"]),
            "LAMP_COLOURS": ", ".join(_vec3(colour) for colour in LAMP_COLOUR.values()),
            **{f"SUN_{axis}": repr(float(v)) for axis, v in zip("XYZ", SUN, strict=True)},
        }

    def fill(self, fragment: str, defines: frozenset[str], **uniforms: int) -> None:
        """One triangle over the whole viewport."""
        self._program("GROUND_VERTEX", fragment, defines, uniforms).render(moderngl.TRIANGLES, vertices=3)

    def quads(self, name: str, defines: frozenset[str], first: int, end: int, **uniforms: int) -> None:
        """Quads first...end by the shaders of this name; vertex 4 q + k is corner k of quad q."""
        if end > self._capacity:
            self._capacity = max(1 << 15, 1 << (end - 1).bit_length())
            index = np.arange(self._capacity, dtype=np.uint32)[:, None] * 4 + np.array([0, 1, 2, 0, 2, 3], np.uint32)
            self._index = self._gl.buffer(index)
            self._made.clear()  # they hold the smaller one
        if end > first:
            vertices = self._program(f"{name}_VERTEX", f"{name}_FRAGMENT", defines, uniforms)
            vertices.render(moderngl.TRIANGLES, vertices=6 * (end - first), first=6 * first)

    def _program(self, vertex: str, fragment: str, defines: frozenset[str], uniforms: dict):
        key = (vertex, fragment, defines)
        if key not in self._made:
            sources = [getattr(gl_shaders, name) for name in (vertex, fragment)]
            head = "#version 430" + "".join(f"\n#define {define}" for define in sorted(defines))
            for name, value in (*self._values.items(), ("#version 430", head)):
                sources = [source.replace(name, value) for source in sources]
            program = self._gl.program(vertex_shader=sources[0], fragment_shader=sources[1])
            for unit, name in ((RAIN_UNIT, "rain_tile"), (RAYS_UNIT, "rays")):
                if name in program:
                    program[name].value = unit
            index = None if vertex == "GROUND_VERTEX" else self._index
            self._made[key] = (program, self._gl.vertex_array(program, [], index))
        program, vertices = self._made[key]
        for name, value in uniforms.items():
            program[name].value = value
        return vertices


class Growing:
    """A storage buffer that takes arrays of any size; a new one each time, so that none waits for a drawing."""

    def __init__(self, gl: moderngl.Context, binding: int):
        self._buffer, self._gl, self._binding = gl.buffer(reserve=1 << 16), gl, binding

    def write(self, data: np.ndarray) -> None:
        if data.nbytes > self._buffer.size:
            self._buffer = self._gl.buffer(reserve=1 << (data.nbytes - 1).bit_length())
        else:
            self._buffer.orphan()
        self._buffer.write(np.ascontiguousarray(data))

    def bind(self) -> None:
        self._buffer.bind_to_storage_buffer(self._binding)


class Pool:
    """Meshes on the device, each once, and per frame what of them is in sight of which camera.

    Props are one mesh of many objects; one object is what follows each other with one instance id.
    """

    def __init__(self, gl: moderngl.Context):
        self._gl, self._backdrop = gl, None
        self._solids, self._drawn = Growing(gl, 1), Growing(gl, 2)

    def _hold(self, backdrop: Backdrop) -> None:
        """Start again with the props of this backdrop, unless they are there already."""
        if backdrop is self._backdrop:
            return
        props = backdrop.props
        self._centre_m = np.zeros(3)
        if len(props):
            self._centre_m[:2] = props.corners_m[..., :2].mean(axis=(0, 1))
        first = np.flatnonzero(np.diff(props.instance, prepend=-1))
        self._first, self._count = first, np.diff(first, append=len(props))
        corners = props.corners_m.reshape(-1, 12)
        if len(first):
            low = np.minimum.reduceat(corners, first).reshape(-1, 4, 3).min(axis=1)
            high = np.maximum.reduceat(corners, first).reshape(-1, 4, 3).max(axis=1)
        else:
            low = high = np.zeros((0, 3))
        self._middle, self._radius = (low + high) / 2, np.linalg.norm(high - low, axis=1) / 2
        self._meshes: dict[Faces, tuple] = {}
        self._faces = np.zeros((len(props) + SPARE_FACES, FACE_VECTORS, 4), np.float32)
        self._faces[: len(props)] = _packed(props, self._centre_m)
        self._used, self._backdrop = len(props), backdrop
        self._buffer = self._gl.buffer(self._faces)

    def _row(self, mesh: Faces) -> tuple:
        """First face, number of faces, centre and radius of a mesh on the device."""
        if mesh not in self._meshes:
            end = self._used + len(mesh)
            if end > len(self._faces):
                self._faces = np.concatenate([self._faces, np.zeros((end, FACE_VECTORS, 4), np.float32)])
                self._buffer = self._gl.buffer(self._faces)
            self._faces[self._used : end] = _packed(mesh, np.zeros(3))
            self._buffer.write(self._faces[self._used : end], offset=self._used * FACE_VECTORS * 16)
            self._meshes[mesh] = (self._used, len(mesh), *mesh.bound)
            self._used = end
        return self._meshes[mesh]

    def send(self, scenes: Sequence[Scene], T_world_from_cam: np.ndarray, origin_m: np.ndarray, cones: list) -> list:
        """Bind what the program `solid` reads; ends [N + 1]: camera n draws the faces ends[n]...ends[n + 1].

        origin_m [N, 2] of frame rel; cones: `Cone` of each camera, or None where it is not to draw anything
        """
        self._hold(scenes[0].backdrop)
        solids, drawn, ends, slot = [], [], [0], 0
        for n, scene in enumerate(scenes):
            moving = scene.moving
            rows = [self._row(mesh) for mesh in moving.meshes]
            solids.append(_solid_rows(moving, self._centre_m[:2] - origin_m[n], origin_m[n]))
            index = np.zeros(0, np.int64)
            if cones[n] is not None:
                middle, radius = moving.spheres
                middle, radius = np.concatenate([self._middle, middle]), np.concatenate([self._radius, radius])
                index = cones[n].holds(middle, radius, T_world_from_cam[n])
            first = np.concatenate([self._first, np.array([row[0] for row in rows], np.int64)])[index]
            count = np.concatenate([self._count, np.array([row[1] for row in rows], np.int64)])[index]
            total = int(count.sum())
            entries = np.empty((total, 2), np.uint32)
            entries[:, 0] = np.arange(total) + np.repeat(first - (np.cumsum(count) - count), count)
            entries[:, 1] = np.repeat(slot + np.maximum(index - len(self._first) + 1, 0), count)
            drawn.append(entries)
            ends.append(ends[-1] + total)
            slot += len(solids[-1])
        self._solids.write(np.concatenate(solids))
        self._drawn.write(np.concatenate(drawn))
        self._buffer.bind_to_storage_buffer(0)
        self._solids.bind()
        self._drawn.bind()
        return ends


class Cone:
    """What a pinhole camera may see."""

    def __init__(self, width: int, height: int, K: np.ndarray):
        low = (-0.5 - K[:2, 2]) / K[[0, 1], [0, 1]]
        high = (np.array([width, height]) - 0.5 - K[:2, 2]) / K[[0, 1], [0, 1]]
        # Unit normals of the sides, pointing out: x - a z < 0 inside the right one, and so on.
        sides = np.array([[1, 0, -high[0]], [-1, 0, low[0]], [0, 1, -high[1]], [0, -1, low[1]]])
        self._planes = np.concatenate([sides / np.linalg.norm(sides, axis=1, keepdims=True), [[0, 0, 1], [0, 0, -1]]])
        self._pixel_rad = float(1 / K[0, 0])

    def holds(self, centre_m: np.ndarray, radius_m: np.ndarray, T_world_from_cam: np.ndarray) -> np.ndarray:
        """Indices of the spheres [K, 3], [K] that may be in the image, within reach and larger than a pixel."""
        normals = T_world_from_cam[:3, :3] @ self._planes.T
        beyond = centre_m @ normals - T_world_from_cam[:3, 3] @ normals
        z = beyond[:, 4]
        seen = (beyond[:, :4] < radius_m[:, None]).all(axis=1) & (z > -radius_m)
        return np.flatnonzero(seen & (z < FACE_REACH_M) & (2 * radius_m > self._pixel_rad * z))


class GroundTextures:
    """The maps of sim.ground as textures that wrap around: the place of a tile follows from its number."""

    def __init__(self, gl: moderngl.Context):
        self._tiles = GroundTiles()
        self._shown: dict[float, dict] = {FINE_M: {}, COARSE_M: {}}  # the tile at each place
        self._first: dict[float, np.ndarray] = {}
        self._textures = {cell: gl.texture((MAP_CELLS, MAP_CELLS), 4) for cell in self._shown}
        for texture in self._textures.values():
            texture.build_mipmaps(0, MIP_LEVELS)
            texture.filter = (moderngl.LINEAR_MIPMAP_NEAREST, moderngl.LINEAR)
        self._near = gl.sampler(texture=self._textures[FINE_M], filter=(moderngl.LINEAR, moderngl.LINEAR))

    def paint(self, surfaces: tuple[Surface, ...], near_m: np.ndarray) -> None:
        """Send the tiles around this position that are not there yet."""
        for cell, texture in self._textures.items():
            first, tiles = self._tiles.around(surfaces, near_m, cell)
            self._first[cell] = np.array(first)
            for (column, row), tile in tiles.items():
                place, shown = (column % TILES, row % TILES), self._shown[cell]
                if shown.get(place) is not tile:
                    shown[place] = tile
                    self._send(texture, place, tile)

    def _send(self, texture: moderngl.Texture, place: tuple[int, int], tile: tuple[np.ndarray, np.ndarray]) -> None:
        level = cv2.merge([*cv2.split(tile[1]), tile[0]])
        for k in range(MIP_LEVELS + 1):
            side = TILE_CELLS >> k
            texture.write(level, viewport=(place[0] * side, place[1] * side, side, side), level=k)
            level = cv2.resize(level, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)

    def bind(self) -> None:
        self._textures[FINE_M].use(FINE_UNIT)
        self._textures[COARSE_M].use(COARSE_UNIT)
        self._near.use(NEAR_UNIT)

    def to_texel(self, cell_m: float, origin_m: np.ndarray) -> np.ndarray:
        """(x, y, scale, wrap): a point p of frame rel is p scale + (x, y) texels, at texel centres, into the map.

        The texture has that wrap % TILES tiles further right and wrap // TILES further down, and around.
        """
        first = self._first[cell_m]
        column, row = first % TILES
        return np.array([*(origin_m / cell_m - first * TILE_CELLS - 0.5), 1 / cell_m, column + TILES * row])


def _vec3(colour: Sequence[int]) -> str:
    return f"vec3({', '.join(repr(v / 255) for v in colour)})"


def _packed(faces: Faces, origin_m: np.ndarray) -> np.ndarray:
    """Faces as float32 [F, 5, 4], see gl_shaders.SOLID_VERTEX; integers keep their bits."""
    out = np.zeros((len(faces), FACE_VECTORS, 4), np.float32)
    out[:, :4, :3] = faces.corners_m - origin_m
    out[:, 4, :3] = faces.normals
    out[:, 0, 3] = np.column_stack([faces.colour, faces.lamp]).view(np.float32)[:, 0]
    out[:, 4, 3] = (faces.semantic + faces.instance.astype(np.uint32) * 256).astype(np.uint32).view(np.float32)
    return out


def _solid_rows(moving, props_xy_m: np.ndarray, origin_m: np.ndarray) -> np.ndarray:
    """Rows float32 [1 + A, 8] of gl_shaders' struct Solid: the props, all of whose lamps shine, then the solids."""
    rows = np.zeros((1 + len(moving.poses), 8), np.float32)
    state = rows.view(np.uint32)
    rows[0, :3], state[0, 4] = (*props_xy_m, 1.0), 255
    rows[1:, :2] = moving.poses[:, :2] - origin_m
    rows[1:, 2], rows[1:, 3] = np.cos(moving.poses[:, 2]), np.sin(moving.poses[:, 2])
    state[1:, 4], state[1:, 5] = moving.lamps, moving.instance.astype(np.uint32) * 256
    return rows
