"""One camera image of the city with its exact truth: distance, class and instance of every pixel's centre."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from occ_core.camera import Camera
from occ_core.world import materials as m
from occ_core.world.classes import OWN_BODY
from occ_core.world.lighting import light_of
from occ_core.world.noise import hash01
from occ_core.world.shading import SKY, Light, shade
from occ_core.world.tracer import Hits, Snapshot

SUBPIXELS = ((0.35, 0.1), (-0.25, 0.3), (-0.1, -0.35))
OCCLUSION_STRIDE_PX = 4
OCCLUSION_RAYS = 6
OCCLUSION_M = 2.5
LAYERS = 3  # panes of glass or layers of leaves that one looks through
MATCHES_PX = 0.1  # a lens shows what a pixel's ray meets, if that point is seen no further off
BLIND_LIGHT = (0.03, 0.03, 0.032)  # of pixels that show the robot itself: like rubber in shade
CONTRAST = 0.5  # neighbouring pixels that differ by more in log light are sampled again


@dataclass(frozen=True, eq=False)
class RenderedImage:
    """An image and its truth, as one camera sees them.

    Attributes:
        radiance: float32 (h, w, 3) linear light.
        depth_m: float32 (h, w) along the optical axis, at pixel centres; inf in the sky; NaN beside a fisheye (90
            degrees off its axis or more), on blind pixels and where the lens shows nothing.
        class_id: uint8 (h, w), Occ3D id; 17 in the sky, OWN_BODY on blind pixels and where the lens shows nothing.
            Glass is its own surface, though one sees through it.
        instance: int32 (h, w) index of the actor, -1 elsewhere.
    """

    radiance: np.ndarray
    depth_m: np.ndarray
    class_id: np.ndarray
    instance: np.ndarray


def render(snapshot: Snapshot, camera: Camera, world_from_cam: np.ndarray, light: Light | None = None) -> RenderedImage:
    """The view of a camera at a snapshot."""
    light = light_of(snapshot) if light is None else light
    w, h = camera.size
    eye = world_from_cam[:3, 3]
    pixels = camera.pixel_grid()
    directions, stretch, shown = _world_rays(camera, world_from_cam, pixels)
    hits = snapshot.cast(eye, directions)
    pixel_rad = 1.0 / camera.intrinsics[0, 0]
    open_sky = _open_sky(snapshot, hits, (h, w))
    rgb = _shade(snapshot, light, hits, directions, hits.distance_m, open_sky, pixel_rad)
    again = _edges(snapshot, hits.solid.reshape(h, w), rgb.reshape(h, w, 3))
    rgb[again] = (rgb[again] + _subpixels(snapshot, light, camera, world_from_cam, pixels[again], open_sky[again])) / (
        1 + len(SUBPIXELS)
    )
    view = RenderedImage(
        rgb.reshape(h, w, 3),
        (hits.distance_m / stretch).astype(np.float32).reshape(h, w),
        snapshot.classes(hits).reshape(h, w),
        snapshot.instances(hits).reshape(h, w),
    )
    _blank(view, ~shown.reshape(h, w), (0.0, 0.0, 0.0))
    if camera.blind is not None:
        _blank(view, camera.blind, BLIND_LIGHT)
    return view


def _blank(view: RenderedImage, pixels: np.ndarray, light: tuple[float, float, float]) -> None:
    """Pixels, bool (h, w), that show nothing of the city."""
    view.radiance[pixels] = light
    view.depth_m[pixels] = np.nan
    view.class_id[pixels] = OWN_BODY
    view.instance[pixels] = -1


def _subpixels(snapshot, light, camera: Camera, world_from_cam: np.ndarray, pixels, open_sky) -> np.ndarray:
    """Sum of the radiance at the sub-pixels of some pixels; each is capped so that no glint leaves a lone white dot."""
    n = len(SUBPIXELS)
    moved = (pixels[None] + np.array(SUBPIXELS)[:, None]).reshape(-1, 2)
    d, _, _ = _world_rays(camera, world_from_cam, moved)
    eye = world_from_cam[:3, 3]
    hits = snapshot.cast(eye, d)
    pixel_rad = 1.0 / camera.intrinsics[0, 0]
    rgb = _shade(snapshot, light, hits, d, hits.distance_m, np.tile(open_sky, n), pixel_rad, LAYERS - 1)
    return np.minimum(rgb, 4.0).reshape(n, -1, 3).sum(axis=0)


def _world_rays(
    camera: Camera, world_from_cam: np.ndarray, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit directions (N, 3) in the world, distance along the ray per metre of depth (N,), NaN where there is no depth,
    and what the lens shows, bool (N,); where it shows nothing, some direction."""
    if camera.distortion_model == "none":
        rays = camera.rays(pixels)
        stretch = np.linalg.norm(rays, axis=1)
        return (rays / stretch[:, None]) @ world_from_cam[:3, :3].T, stretch, np.ones(len(pixels), dtype=np.bool_)
    directions, shown = camera.directions(pixels)
    directions[~shown] = (0.0, 0.0, 1.0)
    # Where the model of a lens folds back, a ray that is found need not be one that comes to this pixel.
    there = replace(camera, blind=None).project(directions)[0]
    shown &= np.hypot(*(there - pixels).T) < MATCHES_PX  # NaN is not
    ahead = directions[:, 2] > 1e-3
    stretch = np.divide(1.0, directions[:, 2], out=np.full(len(pixels), np.nan), where=ahead)
    return directions @ world_from_cam[:3, :3].T, stretch, shown


def _shade(
    snapshot: Snapshot,
    light: Light,
    hits: Hits,
    directions: np.ndarray,
    distance_m: np.ndarray,
    open_sky: np.ndarray,
    pixel_rad: float,
    layers: int = LAYERS,
) -> np.ndarray:
    """Radiance float32 (N, 3) of hits; looks on through up to `layers` panes or crowns, and once into mirrors."""
    points = hits.points_m
    out = np.empty((len(points), 3), dtype=np.float32)
    lit = _sees_sun(snapshot, light, hits)
    far = np.where(hits.solid == SKY, 0.0, distance_m)
    normals = hits.normals.copy()
    bounce, (share, through) = np.empty_like(directions), np.empty((2, len(points)), dtype=np.float32)
    first = layers == LAYERS
    table, ground = snapshot.table, snapshot.ground_table
    shade(
        points, directions, far, normals, hits.solid, lit, open_sky, pixel_rad, light, table, ground,
        layers > 0, first, out, bounce, share, through,
    )  # fmt: skip
    if first:
        _add_mirrored(snapshot, light, points, normals, bounce, far, share, pixel_rad, out)
    pick = np.flatnonzero(through > 0)
    if layers and len(pick):
        start = points[pick] + 0.004 * directions[pick]
        behind = snapshot.cast(start, directions[pick])
        total = distance_m[pick] + np.where(np.isfinite(behind.distance_m), behind.distance_m, 0.0)
        seen = _shade(snapshot, light, behind, directions[pick], total, open_sky[pick] * 0.8, pixel_rad, layers - 1)
        out[pick] += through[pick, None] * seen
    return out


def _add_mirrored(snapshot, light, points, normals, bounce, distance_m, share, pixel_rad, out) -> None:
    """Add what wet ground, glass and car paint mirror: one more ray each, without mirrors in mirrors."""
    pick = np.flatnonzero(share > 0)
    if not len(pick):
        return
    start, directions = points[pick] + 0.01 * normals[pick], bounce[pick]
    hits = snapshot.cast(start, directions)
    total = distance_m[pick] + np.where(np.isfinite(hits.distance_m), hits.distance_m, 0.0)
    open_sky = np.full(len(pick), 0.8, dtype=np.float32)
    seen = _shade(snapshot, light, hits, directions, total, open_sky, pixel_rad, 0)
    out[pick] += share[pick, None] * seen


def _sees_sun(snapshot: Snapshot, light: Light, hits: Hits) -> np.ndarray:
    """1 where the sun is not blocked, float32 (N,)."""
    lit = np.zeros(len(hits.solid), dtype=np.float32)
    if light.sun.max() <= 0.01:
        return lit
    ask, start = np.empty(len(lit), dtype=np.int64), np.empty((len(lit), 3), dtype=np.float32)
    n = _towards_sun(hits.points_m, hits.normals, hits.solid, snapshot.table.material, light.sun_direction, ask, start)
    lit[ask[:n]] = ~snapshot.blocked(start[:n], light.sun_direction[None])
    return lit


@njit(cache=True)
def _towards_sun(points, normals, solid, material, sun, ask, start):
    """Fill `ask` with the hits that face the sun, and all leaves; `start` with where their rays begin. Their number."""
    n = 0
    for i in range(len(solid)):
        s = solid[i]
        if s == SKY:
            continue
        facing = normals[i, 0] * sun[0] + normals[i, 1] * sun[1] + normals[i, 2] * sun[2]
        if facing > 0 or (s >= 0 and material[s] == m.FOLIAGE):
            ask[n] = i
            for c in range(3):
                start[n, c] = points[i, c] + 0.01 * normals[i, c]
            n += 1
    return n


def _open_sky(snapshot: Snapshot, hits: Hits, shape: tuple[int, int]) -> np.ndarray:
    """The share of directions around each hit that are free nearby (ambient occlusion), float32 (h * w,).

    Measured on a coarse grid of pixels, then spread over neighbours of like depth and normal.
    """
    h, w = shape
    s = OCCLUSION_STRIDE_PX
    rows, columns = np.arange(s // 2, h, s), np.arange(s // 2, w, s)
    pick = (rows[:, None] * w + columns[None]).ravel()
    ask = pick[hits.solid[pick] != SKY]
    normals = hits.normals[ask]
    start = np.repeat(hits.points_m[ask] + 0.02 * normals, OCCLUSION_RAYS, axis=0)
    blocked = snapshot.blocked(start, _hemisphere(ask, normals), OCCLUSION_M)
    free = (~blocked).reshape(-1, OCCLUSION_RAYS).sum(axis=1).astype(np.float32)
    coarse = np.ones(h * w, dtype=np.float32)
    coarse[ask] = free / OCCLUSION_RAYS
    out = np.ones(h * w, dtype=np.float32)
    _spread(coarse, hits.distance_m, hits.normals, h, w, s, len(rows), len(columns), out)
    return 0.25 + 0.75 * out


@njit(cache=True)
def _hemisphere(pixel, normals):
    """Cosine-weighted directions around normals, float32 (N * OCCLUSION_RAYS, 3).

    Another set per pixel, so that errors average out over neighbours.
    """
    out = np.empty((len(pixel) * OCCLUSION_RAYS, 3), np.float32)
    for i in range(len(pixel)):
        nx, ny, nz = normals[i]
        sign = 1.0 if nz >= 0 else -1.0  # orthonormal basis after Duff et al. 2017
        a = -1.0 / (sign + nz)
        b = nx * ny * a
        for index in range(OCCLUSION_RAYS):
            u = (index + hash01(pixel[i], index, 1, 5)) / OCCLUSION_RAYS
            angle = 2 * np.pi * hash01(pixel[i], index, 2, 5)
            r, up = np.sqrt(u), np.sqrt(1 - u)
            x, y = r * np.cos(angle), r * np.sin(angle)
            k = i * OCCLUSION_RAYS + index
            out[k, 0] = x * (1 + sign * nx * nx * a) + y * b + up * nx
            out[k, 1] = x * sign * b + y * (sign + ny * ny * a) + up * ny
            out[k, 2] = -x * sign * nx - y * ny + up * nz
    return out


@njit(cache=True, error_model="numpy")
def _spread(coarse, distance, normals, h, w, s, rows, columns, out):
    """Joint bilateral interpolation of the coarse samples (first at s // 2, every s pixels)."""
    for y in range(h):
        cy = min(rows - 1, y // s)
        for x in range(w):
            i = y * w + x
            far = distance[i]
            if not far < 1e9:
                continue
            nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
            cx = min(columns - 1, x // s)
            total, weight, scale = 0.0, 1e-6, 0.03 * far + 0.03
            for ky in range(max(0, cy - 1), min(rows, cy + 2)):
                for kx in range(max(0, cx - 1), min(columns, cx + 2)):
                    py, px = s // 2 + ky * s, s // 2 + kx * s
                    j = py * w + px
                    gap = abs(far - distance[j]) / scale
                    if gap > 50.0:  # or in the sky: exp would be nothing beside the least weight that counts
                        continue
                    if nx * normals[j, 0] + ny * normals[j, 1] + nz * normals[j, 2] < 0.7:
                        continue
                    off = ((y - py) ** 2 + (x - px) ** 2) / (1.2 * s * s)
                    k = np.exp(-gap - off)
                    total += k * coarse[j]
                    weight += k
            out[i] = total / weight if weight > 1e-4 else 0.8


@njit(cache=True, error_model="numpy")
def _edge_map(solid, leaves, rgb, contrast, out):
    h, w = solid.shape
    light = np.empty((h, w))
    for y in range(h):
        for x in range(w):
            light[y, x] = np.log(0.02 + rgb[y, x, 0] + rgb[y, x, 1] + rgb[y, x, 2])
    for y in range(h):
        for x in range(w):
            for dy, dx in ((0, 1), (1, 0)):
                v, u = y + dy, x + dx
                if v >= h or u >= w or (leaves[y, x] and leaves[v, u]):
                    continue
                if solid[y, x] != solid[v, u] or abs(light[y, x] - light[v, u]) > contrast:
                    out[y, x] = True
                    out[v, u] = True


def _edges(snapshot: Snapshot, solid: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Indices of the pixels worth more samples: outlines, and sharp steps of light, but not leaf against leaf."""
    out = np.zeros(solid.shape, dtype=np.bool_)
    leaves = (solid >= 0) & (snapshot.table.material[np.maximum(solid, 0)] == m.FOLIAGE)
    _edge_map(solid, leaves, rgb, CONTRAST, out)
    return np.flatnonzero(out)
