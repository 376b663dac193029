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
from sim.scene import GROUND, Scene
from sim.solids import LAMP_COLOUR
from sim.visible import Pool, Seen, Sight
from sim.weather import SUN

HOW_TO_GET = "Get it by: apt-get install libegl1 libgl1 libgl1-mesa-dri (no GPU needed). Or take the renderer cv"
FINE_UNIT, COARSE_UNIT, NEAR_UNIT, RAIN_UNIT, RAYS_UNIT = range(5)  # texture units; near: fine, without mip levels
MIP_LEVELS = 6
FACE_VECTORS = 5


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


@lru_cache(maxsize=1)
def is_software() -> bool:
    """Whether the processor draws: it samples textures at a fraction of OpenCV's speed."""
    with open_gl() as gl:
        return any(name in gl.info["GL_RENDERER"].lower() for name in ("llvmpipe", "softpipe", "swrast", "software"))


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


class Solids:
    """The faces of sim.visible on the device, each once, and per frame the solids and what cameras may see of them."""

    def __init__(self, gl: moderngl.Context):
        self.pool = Pool()
        self._gl, self._sent = gl, (0, 0)  # generation and number of the faces that are on the device
        self._faces, self._solids, self._drawn = Growing(gl, 0), Growing(gl, 1), Growing(gl, 2)

    def send(self, scenes: Sequence[Scene], T_world_from_cam: np.ndarray, origin_m: np.ndarray, sight: Sight) -> Seen:
        """What cameras may see, bound for the program SOLID to read; origin_m [N, 2]: of frame rel."""
        seen = self.pool.see(scenes, T_world_from_cam, sight)
        now = (self.pool.generation, self.pool.used)
        if now != self._sent:
            self._faces.write(_packed(self.pool))
            self._sent = now
        camera = np.concatenate([np.arange(len(scenes)), np.repeat(np.arange(len(scenes)), seen.solids_of_camera)])
        rows = np.empty((len(seen.poses), 8), np.float32)
        rows[:, :2] = seen.poses[:, :2] - origin_m[camera]
        rows[:, 2], rows[:, 3] = np.cos(seen.poses[:, 2]), np.sin(seen.poses[:, 2])
        state = rows.view(np.uint32)
        state[:, 4], state[:, 5], state[:, 6:] = seen.lamps, seen.instance.astype(np.uint32) * 256, 0
        self._solids.write(rows)
        self._drawn.write(np.stack([seen.face, seen.solid[seen.owner]], axis=1).astype(np.uint32))
        for buffer in (self._faces, self._solids, self._drawn):
            buffer.bind()
        return seen


class GroundTextures:
    """The maps of sim.ground as textures that wrap around: the place of a tile follows from its number."""

    def __init__(self, gl: moderngl.Context):
        self._tiles = GroundTiles()
        self._shown: dict[float, dict] = {FINE_M: {}, COARSE_M: {}}  # the tile at each place
        self._first = {cell: np.zeros(2, int) for cell in self._shown}
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

    def _send(self, texture: moderngl.Texture, place: tuple[int, int], tile: np.ndarray) -> None:
        level = tile
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


def _packed(pool: Pool) -> np.ndarray:
    """Its faces as float32 [P, 5, 4], see gl_shaders.SOLID_VERTEX; integers keep their bits."""
    used = slice(pool.used)
    out = np.zeros((pool.used, FACE_VECTORS, 4), np.float32)
    out[:, :4, :3], out[:, 4, :3] = pool.corners[used], pool.normals[used]
    out[:, 0, 3] = np.column_stack([pool.colour[used], pool.lamp[used]]).view(np.float32)[:, 0]
    ids = pool.semantic[used] + pool.instance[used].astype(np.uint32) * 256
    out[:, 4, 3] = ids.astype(np.uint32).view(np.float32)
    return out
