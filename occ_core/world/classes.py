"""Occ3D class ids by name, for the code that builds the city (see `occ_core.taxonomy.OCC3D`)."""

from occ_core.taxonomy import UNLABELED

(
    OTHERS,
    BARRIER,
    BICYCLE,
    BUS,
    CAR,
    CONSTRUCTION_VEHICLE,
    MOTORCYCLE,
    PEDESTRIAN,
    TRAFFIC_CONE,
    TRAILER,
    TRUCK,
    DRIVEABLE,
    OTHER_FLAT,
    SIDEWALK,
    TERRAIN,
    MANMADE,
    VEGETATION,
    FREE,
) = range(18)

OWN_BODY = UNLABELED
"""Class of a pixel that shows the robot itself, which is in no voxel."""
