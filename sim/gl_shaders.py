"""GLSL of render_gl. The formulas are those of sim/weather.py, sim/ground.py and sim/render_cv.py, per fragment.

Conventions: row v of an image is row v of the framebuffer, counted from its start, so nothing is flipped on reading and
a face that is counter-clockwise to the eye is clockwise to GL. Frame `rel` has the world's axes and height, and the ego
as its origin in x and y, so that 32 bits are enough anywhere. The depth buffer holds NEAR_M / depth. What a frame does
not need is left out by #ifdef, as llvmpipe runs both ways of an if: BEAM, RAIN, IDS (depth and ids, too), LENS.
"""

CAMERA_FLOATS = 128  # from one camera's block to the next's, of which it uses 76; drivers want multiples of 64

COMMON = """
#version 430
layout(std140, binding = 0) uniform Camera {
    mat4 clip_from_rel;
    mat3x4 rel_from_cam;  // columns; w unused
    vec4 eye;             // in rel, m; w: the image's first row in the framebuffer
    vec4 lens;            // fx, fy, cx, cy
    vec4 size;            // width, height; first row whose ground is looked up in the fine map; mean of fx and fy
    vec4 fine, coarse;    // ground maps: texel = rel * z + xy; w: wrap, see gl_device.GroundTextures
    vec4 ego;             // cos, sin of the ego's yaw; offset of the rain tile
    vec4 ambient;         // light; w: haze_m
    vec4 direct;          // light; w: strength of the beam
    vec4 horizon;         // colour; w: rain
    vec4 zenith;          // colour; w: rain cells a pixel
    vec4 ground;          // light; w: what a shadow leaves
    vec4 streak;          // colour of rain
} cam;
const float NEAR_M = 0.1, INFINITY = uintBitsToFloat(0x7F800000u);
"""

FRAGMENT = (
    COMMON
    + """
const vec3 BEAM_COLOUR = vec3(1.0, 0.95, 0.84);
#ifdef RAIN
uniform sampler2D rain_tile;
#endif
#ifdef LENS
uniform sampler2D rays;  // (a, b) of each pixel's ray (a, b, 1); a = 1e9: none
#endif
layout(location = 0) out vec4 out_colour;
#ifdef IDS
layout(location = 1) out float out_depth;
layout(location = 2) out uint out_ids;  // semantic + 256 instance
#endif

void tell(float depth, uint ids) {
#ifdef IDS
    out_depth = depth;
    out_ids = ids;
#endif
}

vec2 pixel() { return gl_FragCoord.xy - vec2(0.5, 0.5 + cam.eye.w); }

vec3 ray_at(vec2 at) {
#ifdef LENS
    return vec3(texelFetch(rays, ivec2(gl_FragCoord.xy), 0).xy, 1.0);
#else
    return vec3((at - cam.lens.zw) / cam.lens.xy, 1.0);
#endif
}

float beam(vec2 p) {  // p in rel
    vec4 ego = cam.ego;
    float s = dot(ego.xy, p) - 3.4, y = ego.x * p.y - ego.y * p.x;
    float across = y / (1.6 + 0.3 * max(s, 0.0));
    across *= across;
    return s > 0.0 ? cam.direct.w * 1.25 * exp(-s / 26.0) / (1.0 + across * across) : 0.0;
}

vec4 in_air(vec3 colour, float haze_m, float wet, vec2 at) {  // haze_m: depth, half of it for a lamp
    float clear = exp(-haze_m / cam.ambient.w) * (1.0 - wet);
    colour = mix(cam.horizon.rgb, min(colour, 1.0), clear);
#ifdef RAIN
    ivec2 cell = (ivec2(at * cam.zenith.w) + ivec2(cam.ego.zw)) & 255;
    colour = mix(colour, cam.streak.rgb, cam.horizon.w * texelFetch(rain_tile, cell, 0).x);
#endif
    return vec4(colour, 1.0);
}
"""
)

GROUND_VERTEX = (
    COMMON
    + """
void main() { gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, -1.0, 1.0); }
"""
)

SKY_FRAGMENT = (
    FRAGMENT
    + """
void main() {
    vec2 at = pixel();
    vec3 ray = ray_at(at), in_rel = mat3(cam.rel_from_cam) * ray;
    float up = clamp(in_rel.z * inversesqrt(dot(ray, ray)) / 0.45, 0.0, 1.0);
    vec3 sky = mix(cam.horizon.rgb, cam.zenith.rgb, up);
    out_colour = in_air(sky, 0.0, 0.0, at);
    tell(INFINITY, 0u);
    if (ray.x > 1e8) out_colour = vec4(0.0, 0.0, 0.0, 1.0);
}
"""
)

# Drawn over the sky. TAPS 0 is for near ground, where a texel is larger than what a pixel covers.
GROUND_FRAGMENT = (
    FRAGMENT
    + """
uniform sampler2D ground_map;  // colour, and in alpha 1 / 255 of the semantic class
uniform bool is_fine;

void main() {
    vec2 at = pixel();
    vec3 ray = ray_at(at), in_rel = mat3(cam.rel_from_cam) * ray;
    float nearness = -in_rel.z / cam.eye.z;
    if (nearness <= 1e-6 || ray.x > 1e8) discard;
    float depth = 1.0 / nearness;
    vec2 point = cam.eye.xy + in_rel.xy * depth;
    vec4 map = is_fine ? cam.fine : cam.coarse;
    vec2 texel = point * map.z + map.xy, unit = 1.0 / vec2(MAP_CELLS);
    ivec2 wrap = TILE_CELLS * ivec2(int(map.w) % MAP_TILES, int(map.w) / MAP_TILES);
    vec2 from = (texel + vec2(wrap) + 0.5) * unit;
#if TAPS == 0
    vec3 paint = texture(ground_map, from).rgb;
#else
    // What a pixel covers of the ground is long and narrow: samples along it, each as wide as it is narrow.
    float wide = depth / cam.size.w;
    vec2 away = in_rel.xy * (wide * min(depth / cam.eye.z, 64.0 / length(in_rel.xy)));
    float lod = log2(max(max(wide, length(away) / float(TAPS)) * map.z, 1.0));
    vec2 along = away * (map.z * unit / float(TAPS));
    vec3 paint = vec3(0.0);
    for (int k = 0; k < TAPS; k++)
        paint += textureLod(ground_map, from + along * (float(k) + 0.5 - 0.5 * float(TAPS)), lod).rgb;
    paint /= float(TAPS);
#endif
    ivec2 cell = ivec2(floor(texel + 0.5));
    bool mapped = cell.x >= 0 && cell.y >= 0 && cell.x < MAP_CELLS && cell.y < MAP_CELLS;
    vec3 light = cam.ground.rgb;
#ifdef BEAM
    light += beam(point) * BEAM_COLOUR;
#endif
    float wet = 0.0;
#ifdef RAIN
    wet = 1.0 - abs(in_rel.z) * inversesqrt(dot(ray, ray));
    wet *= 0.55 * cam.horizon.w * wet * wet;
#endif
    out_colour = in_air((mapped ? paint : TERRAIN) * light, depth, wet, at);
#ifdef IDS
    vec4 here = texelFetch(ground_map, (cell + wrap) & (MAP_CELLS - 1), 0);
    tell(depth, mapped ? uint(here.a * 255.0 + 0.5) : 1u);
#endif
}
"""
)

SHADOW_VERTEX = (
    COMMON
    + """
layout(std430, binding = 4) readonly buffer Shadows { vec2 corners[]; };  // in rel
void main() { gl_Position = cam.clip_from_rel * vec4(corners[gl_VertexID], 0.0, 1.0); }
"""
)

SHADOW_FRAGMENT = (
    COMMON
    + """
layout(location = 0) out vec4 out_colour;
void main() { out_colour = vec4(vec3(cam.ground.w), 1.0); }
"""
)

SOLID_VERTEX = (
    COMMON
    + """
const vec3 SUN = vec3(SUN_X, SUN_Y, SUN_Z);
const vec3 LAMPS[8] = vec3[](LAMP_COLOURS);
// A face: four corners in its solid's frame, outward normal; in corner 0's w its colour and lamp bits, in the normal's
// the semantic class and, of a prop, 256 times its instance.
layout(std430, binding = 0) readonly buffer Faces { vec4 faces[]; };
// A solid: x, y, cos and sin of yaw in rel; lamp bits that shine, 256 times its instance.
struct Solid { vec4 pose; uvec4 state; };
layout(std430, binding = 1) readonly buffer Solids { Solid solids[]; };
layout(std430, binding = 2) readonly buffer Drawn { uvec2 drawn[]; };  // face, solid
flat out vec3 lit;    // colour in this light
flat out vec3 paint;  // colour under the beam; 0 for a lamp
flat out float through;
flat out uint ids;
out vec2 in_rel;

void main() {
    uvec2 entry = drawn[gl_VertexID >> 2];
    uint face = entry.x * 5u;
    vec4 pose = solids[entry.y].pose;
    uvec4 state = solids[entry.y].state;
    vec3 corner = faces[face + uint(gl_VertexID & 3)].xyz;
    vec4 normal = faces[face + 4u];
    uint look = floatBitsToUint(faces[face].w), shining = (look >> 24) & state.x;
    mat2 turn = mat2(pose.z, pose.w, -pose.w, pose.z);
    in_rel = turn * corner.xy + pose.xy;
    gl_Position = cam.clip_from_rel * vec4(in_rel, corner.z, 1.0);
    paint = unpackUnorm4x8(look).rgb;
    float lambert = max(dot(vec3(turn * normal.xy, normal.z), SUN), 0.0);
    lit = paint * (cam.ambient.rgb + lambert * cam.direct.rgb);
    through = 1.0;
    if (shining != 0u) {
        through = 0.5;
        lit = LAMPS[findLSB(shining)];
        paint = vec3(0.0);
    }
    ids = floatBitsToUint(normal.w) + state.y;
}
"""
)

SOLID_FRAGMENT = (
    FRAGMENT
    + """
flat in vec3 lit;
flat in vec3 paint;
flat in float through;
flat in uint ids;
in vec2 in_rel;
void main() {
    float depth = 1.0 / gl_FragCoord.w;
    vec3 colour = lit;
#ifdef BEAM
    colour += paint * beam(in_rel) * BEAM_COLOUR;
#endif
    out_colour = in_air(colour, through * depth, 0.0, pixel());
    tell(depth, ids);
}
"""
)

# Through a lens straight edges are curves: each face is drawn as the rectangle of pixels that holds it, and each pixel
# is tested against the face as in render_cv, so that any lens model is exact.
LENS_VERTEX = (
    COMMON
    + """
// Four edge functions and 1 / depth, linear in the ray; colour and ids in the first two w's; x0, x1, y0, y1 of pixels.
layout(std430, binding = 3) readonly buffer Seen { vec4 seen[]; };
flat out vec3 planes[5];
flat out vec4 lit;  // w: 1 for a lamp
flat out uint ids;
void main() {
    int face = 6 * (gl_VertexID >> 2), corner = gl_VertexID & 3;
    vec4 window = seen[face + 5];
    for (int k = 0; k < 5; k++) planes[k] = seen[face + k].xyz;
    lit = unpackUnorm4x8(floatBitsToUint(seen[face].w));
    ids = floatBitsToUint(seen[face + 1].w);
    vec2 at = vec2(corner == 1 || corner == 2 ? window.y : window.x, corner >= 2 ? window.w : window.z);
    gl_Position = vec4(2.0 * at / cam.size.xy - 1.0, 0.0, 1.0);
}
"""
)

LENS_FRAGMENT = (
    FRAGMENT
    + """
flat in vec3 planes[5];
flat in vec4 lit;
flat in uint ids;
uniform bool is_shadow;
void main() {
    vec2 at = pixel();
    vec3 ray = ray_at(at);
    float inside = min(min(dot(planes[0], ray), dot(planes[1], ray)), min(dot(planes[2], ray), dot(planes[3], ray)));
    float nearness = dot(planes[4], ray);
    if (!(inside >= 0.0 && nearness > 0.0) || ray.x > 1e8) discard;
    float depth = 1.0 / nearness;
    vec4 seen_colour = in_air(lit.rgb, depth * (1.0 - 0.5 * lit.w), 0.0, at);
    out_colour = is_shadow ? vec4(vec3(cam.ground.w), 1.0) : seen_colour;
    tell(depth, ids);
    gl_FragDepth = NEAR_M * nearness;
}
"""
)
