"""Material numbers shared by the city's geometry (solids, ground raster) and its renderer."""

PAINT = 0  # plain painted surface with dirt
FACADE = 1  # plaster or brick with a repeated window grid in solid coordinates; some windows lit at night
GLASS = 2
METAL = 3
FOLIAGE = 4  # leaf noise, irregular
BARK = 5
CONCRETE = 6
CLOTH = 7
RUBBER = 8
BANDS = 9  # red and white bands: barriers, cones
SIGN = 10
LAMP = 11  # emissive
CARBODY = 12  # paint with sky reflection
BRICK = 13

# Ground materials, stored per cell of the ground raster.
ASPHALT = 32
PAVING = 33
GRASS = 34
SOIL = 35
KERB = 36
COBBLE = 37
PAINT_WHITE = 38
PAINT_YELLOW = 39
