"""Street furniture: lamps, lights, signs, shelters, benches, bollards; all manmade and thin."""

from __future__ import annotations

import numpy as np

from occ_core.world.classes import MANMADE
from occ_core.world.materials import CONCRETE, GLASS, LAMP, METAL, PAINT, SIGN
from occ_core.world.roads import LEFT, RIGHT, Junction, Side
from occ_core.world.scene_builder import SceneBuilder, any_color, seed_of, somewhere
from occ_core.world.solids import Builder, Solids
from occ_core.world.streets import CROSSWALK_M

POLE_M = 0.16  # diameter from which a pole is met by the truth's 0.1 m sub-cells wherever it stands


def lamp_post(height: float, arm: float, color) -> Solids:
    """A street lamp on z = 0; its arm reaches towards -y."""
    b = Builder()
    b.cylinder((0, 0, height / 2 - 0.25), (POLE_M, POLE_M, height + 0.5), MANMADE, METAL, color)
    b.cylinder((0, 0, 0.3), (0.26, 0.26, 1.2), MANMADE, METAL, color)
    b.box((0, -arm / 2, height), (0.1, arm, 0.1), MANMADE, METAL, color)
    b.box((0, -arm, height - 0.1), (0.35, 0.7, 0.14), MANMADE, LAMP, (1.0, 0.85, 0.6))
    return b.solids()


def traffic_light(rng: np.random.Generator, mast: float) -> Solids:
    """A pole with signal heads facing -x; a mast arm reaches towards +y if `mast` > 0."""
    b = Builder()
    color = any_color(rng) * 0.5
    height = 6.0 if mast else 3.4
    b.cylinder((0, 0, height / 2 - 0.25), (0.18, 0.18, height + 0.5), MANMADE, METAL, color)
    heads = [(0.0, 2.9)]
    if mast:
        b.box((0, mast / 2, height), (0.14, mast, 0.14), MANMADE, METAL, color)
        heads += [(mast, height - 0.1), (mast * 0.6, height - 0.1)]
    lit = int(rng.integers(3))
    for y, z in heads:
        b.box((-0.2, y, z), (0.28, 0.34, 1.0), MANMADE, PAINT, (0.03, 0.03, 0.03))
        for k, light in enumerate(((0.9, 0.05, 0.02), (0.9, 0.5, 0.02), (0.05, 0.8, 0.3))):
            shade = np.array(light) * (1.0 if k == lit else 0.08)
            kind = LAMP if k == lit else PAINT
            b.ellipsoid((-0.35, y, z + 0.3 - 0.3 * k), (0.1, 0.22, 0.22), MANMADE, kind, shade)
    return b.solids()


def sign(rng: np.random.Generator) -> Solids:
    """A traffic sign that faces -x."""
    b = Builder()
    height, seed = rng.uniform(2.0, 3.0), seed_of(rng)
    b.cylinder((0, 0, height / 2), (POLE_M * 0.75, POLE_M * 0.75, height + 0.6), MANMADE, METAL, (0.3, 0.3, 0.3))
    color = [(0.6, 0.05, 0.05), (0.05, 0.1, 0.5), (0.7, 0.5, 0.05), (0.7, 0.7, 0.7), (0.03, 0.3, 0.1)][rng.integers(5)]
    if rng.random() < 0.5:
        b.cylinder((-0.1, 0, height), (0.7, 0.7, 0.08), MANMADE, SIGN, color, seed, pitch=np.pi / 2)
    else:
        b.box((-0.1, 0, height), (0.08, rng.uniform(0.5, 1.2), rng.uniform(0.5, 0.9)), MANMADE, SIGN, color, seed)
    return b.solids()


def shelter(rng: np.random.Generator) -> Solids:
    """A glass bus shelter, open towards -y."""
    b = Builder()
    color, seed, length = any_color(rng) * 0.5, seed_of(rng), rng.uniform(3.0, 5.0)
    for x in (-length / 2, length / 2):
        for y in (0.6, -0.6):
            b.box((x, y, 1.1), (0.12, 0.12, 2.7), MANMADE, METAL, color, seed)
        b.box((x, 0.15, 1.2), (0.09, 0.85, 1.8), MANMADE, GLASS, (0.05, 0.07, 0.07), seed)
    panes = int(length / 1.2)
    for k in range(panes):
        x = -length / 2 + (k + 0.5) * length / panes
        b.box((x, 0.6, 1.2), (length / panes - 0.15, 0.09, 1.8), MANMADE, GLASS, (0.05, 0.07, 0.07), seed + k)
    b.box((0, 0, 2.45), (length + 0.3, 1.7, 0.14), MANMADE, METAL, color, seed)
    b.box((0, 0.35, 0.5), (length * 0.7, 0.4, 0.12), MANMADE, PAINT, any_color(rng), seed)
    return b.solids()


def bench(rng: np.random.Generator) -> Solids:
    b = Builder()
    color = any_color(rng)
    b.box((0, 0, 0.45), (1.7, 0.45, 0.1), MANMADE, PAINT, color)
    b.box((0, 0.25, 0.75), (1.7, 0.1, 0.4), MANMADE, PAINT, color)
    for x in (-0.7, 0.7):
        b.box((x, 0, 0.15), (0.12, 0.45, 0.6), MANMADE, CONCRETE, (0.3, 0.3, 0.3))
    return b.solids()


def bollard(rng: np.random.Generator) -> Solids:
    b = Builder()
    b.cylinder((0, 0, 0.35), (POLE_M, POLE_M, 1.2), MANMADE, METAL, any_color(rng) * 0.7)
    return b.solids()


def cabinet(rng: np.random.Generator) -> Solids:
    """A switch box, a post box or an advertising column."""
    b = Builder()
    color, seed = any_color(rng), seed_of(rng)
    if rng.random() < 0.3:
        b.cylinder((0, 0, 1.3), (1.1, 1.1, 3.2), MANMADE, SIGN, color, seed)
        b.cylinder((0, 0, 2.95), (1.3, 1.3, 0.25), MANMADE, METAL, color * 0.5, seed)
    else:
        size = rng.uniform((0.5, 0.35, 0.9), (1.4, 0.6, 1.5))
        b.box((0, 0, size[2] / 2 - 0.15), size + (0, 0, 0.3), MANMADE, PAINT, color, seed)
    return b.solids()


def billboard(rng: np.random.Generator) -> Solids:
    b = Builder()
    z = rng.uniform(2.5, 4.5)
    for x in (-1.6, 1.6):
        b.cylinder((x, 0, z / 2), (0.22, 0.22, z + 1), MANMADE, METAL, (0.25, 0.25, 0.25))
    b.box((0, 0, z + 0.8), (4.5, 0.2, 2.2), MANMADE, SIGN, any_color(rng), seed_of(rng))
    return b.solids()


def furnish_side(rng: np.random.Generator, scene: SceneBuilder, side: Side) -> None:
    """Lamps at regular distances, and the rest at random, all beside the kerb."""
    kerb = scene.road.edge_m(side.sign) + side.bay_m
    color = any_color(rng) * 0.5
    height, arm = rng.uniform(5.5, 9.0), rng.uniform(0.8, 2.2)
    for station in np.arange(side.start_m + 9, side.end_m - 7, rng.uniform(22, 34)):
        _stand(scene, side, station, kerb + 0.55, lamp_post(height, arm, color), 0.4, 0.4, (0, -arm, height - 0.25))
    behind = kerb + side.verge_m + side.walk_m - 0.45
    for _ in range(rng.poisson(side.length_m / 22)):
        station = somewhere(rng, side.start_m + 8, side.end_m - 8)
        made = [sign, sign, bollard, cabinet, bench][rng.integers(5)](rng)
        at_kerb = rng.random() < 0.5 or side.walk_m < 2.2
        _stand(scene, side, station, kerb + 0.55 if at_kerb else behind, made, 0.9, 0.6)
    if side.walk_m + side.verge_m > 3.4 and side.length_m > 40 and rng.random() < 0.5:
        station = somewhere(rng, side.start_m + 16, side.end_m - 16)
        _stand(scene, side, station, kerb + 1.2, shelter(rng), 5.2, 1.8)
    if rng.random() < 0.2:
        _stand(scene, side, somewhere(rng, side.start_m + 8, side.end_m - 8), behind + 2.0, billboard(rng), 4.6, 0.5)
    if rng.random() < 0.2:
        for station in np.arange(side.start_m + 12, min(side.end_m - 12, side.start_m + 40), 1.6):
            _stand(scene, side, station, kerb + 0.45, bollard(rng), 0.3, 0.3)


def _stand(scene, side, station, distance, solids, length, width, lamp=None) -> None:
    if any(abs(station - s) < half + length / 2 + 0.4 for s, half, _ in side.driveways):
        return
    frame = scene.facing(side.sign, station, distance)
    if scene.beyond(frame[:2, 3]) < 0.35 or not scene.claim_at(frame, length, width):
        return
    scene.builder.place(solids, frame)
    if lamp is not None:
        scene.lamps_m.append((frame @ np.array([*lamp, 1.0]))[:3])


def furnish_junction(rng: np.random.Generator, scene: SceneBuilder, junction: Junction) -> None:
    """Signals or signs at the corners."""
    road = scene.road
    for along in (-1, 1):
        for sign_ in (LEFT, RIGHT):
            station = junction.station_m + along * (junction.half_width_m + CROSSWALK_M[0] - 0.6)
            corner = road.edge_m(sign_) + (CROSSWALK_M[0] if sign_ in junction.arms else 0.7)
            # Drivers on the right look in +x; their signal stands on the right, beyond the junction and before it.
            frame = scene.frame(station, sign_ * corner, 0.0 if sign_ == RIGHT else np.pi)
            if scene.beyond(frame[:2, 3]) < 0.4 or not scene.claim_at(frame, 0.4, 0.4):
                continue
            if junction.signals:
                mast = 4.0 if along == (1 if sign_ == RIGHT else -1) and rng.random() < 0.6 else 0.0
                solids = traffic_light(rng, mast)
                scene.builder.place(solids, frame)
            elif rng.random() < 0.6:
                scene.builder.place(sign(rng), frame)
