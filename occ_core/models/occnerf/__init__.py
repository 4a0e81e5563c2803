"""OccNeRF: images to a volume of contracted space, taught by what cameras would see in it."""
