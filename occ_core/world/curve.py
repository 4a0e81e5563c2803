"""The centreline of the main road: every place of the city is named by station (metres along) and offset (left)."""

from __future__ import annotations

import numba
import numpy as np

STEP_M = 0.5
MAX_CURVATURE_PER_M = 1 / 85


class Curve:
    """A smooth curve in the plane, heading along +x on the whole.

    Attributes:
        start_m, stations_m: first station and all stations (S,), every STEP_M.
        xy_m (S, 2), heading (S,) radians.
    """

    def __init__(self, rng: np.random.Generator, start_m: float, end_m: float) -> None:
        self.start_m = start_m
        self.stations_m = start_m + STEP_M * np.arange(round((end_m - start_m) / STEP_M) + 1)
        heading = np.zeros(len(self.stations_m))
        bend = rng.choice([0.15, 0.6, 1.0])  # share of the allowed curvature: near straight .. winding
        for share in (0.6, 0.4):
            wavelength = rng.uniform(120, 420)
            amplitude = min(bend * share * MAX_CURVATURE_PER_M * wavelength / (2 * np.pi), 0.35)
            heading += amplitude * np.sin(2 * np.pi * self.stations_m / wavelength + rng.uniform(0, 2 * np.pi))
        self.heading = heading - heading.mean()
        steps = STEP_M * np.stack([np.cos(self.heading), np.sin(self.heading)], axis=1)
        xy = np.concatenate([np.zeros((1, 2)), np.cumsum((steps[1:] + steps[:-1]) / 2, axis=0)])
        self.xy_m = xy - xy[round(-start_m / STEP_M)]

    def heading_at(self, station_m) -> np.ndarray:
        return np.interp(station_m, self.stations_m, self.heading)

    def point(self, station_m, offset_m) -> np.ndarray:
        """World points (..., 2) at stations and offsets to the left; straight on beyond the curve's ends."""
        heading = self.heading_at(station_m)
        beyond = station_m - np.minimum(np.maximum(station_m, self.stations_m[0]), self.stations_m[-1])
        x = np.interp(station_m, self.stations_m, self.xy_m[:, 0]) - offset_m * np.sin(heading)
        y = np.interp(station_m, self.stations_m, self.xy_m[:, 1]) + offset_m * np.cos(heading)
        return np.stack([x + beyond * np.cos(heading), y + beyond * np.sin(heading)], axis=-1)

    def project_raster(self, origin_m: tuple[float, float], cell_m: float, shape: tuple[int, int]):
        """Station and offset, float32 (nx, ny) each, of every cell centre of a raster."""
        return _project(self.start_m, self.xy_m, self.heading, origin_m[0], origin_m[1], cell_m, shape[0], shape[1])


@numba.njit(cache=True)
def _project(start, xy, heading, x0, y0, cell, nx, ny):
    station = np.empty((nx, ny), np.float32)
    offset = np.empty((nx, ny), np.float32)
    last = len(heading) - 1
    column = np.zeros(ny)
    for i in range(nx):
        px = x0 + (i + 0.5) * cell
        for j in range(ny):
            py = y0 + (j + 0.5) * cell
            # The neighbour's answer is a good start; the first row has to search.
            s = column[j] + cell if i else start
            if i == 0:
                best = 1e30
                for k in range(last + 1):
                    distance = (xy[k, 0] - px) ** 2 + (xy[k, 1] - py) ** 2
                    if distance < best:
                        best = distance
                        s = start + k * STEP_M
            d = 0.0
            for _ in range(3 if i else 12):
                u = min(max((s - start) / STEP_M, 0.0), last - 1e-6)
                k = int(u)
                f = u - k
                h = heading[k] * (1 - f) + heading[k + 1] * f
                ex = px - (xy[k, 0] * (1 - f) + xy[k + 1, 0] * f)
                ey = py - (xy[k, 1] * (1 - f) + xy[k + 1, 1] * f)
                d = -ex * np.sin(h) + ey * np.cos(h)
                bend = (heading[k + 1] - heading[k]) / STEP_M
                s = start + u * STEP_M + (ex * np.cos(h) + ey * np.sin(h)) / max(1 - bend * d, 0.25)
                s = min(max(s, start), start + last * STEP_M)
            column[j] = s
            station[i, j] = s
            offset[i, j] = d
    return station, offset
