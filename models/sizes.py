"""The number by which networks divide a picture, without torch: the configuration's rules read it."""

CELL = 8  # pixels a side of a cell: of the autoencoder's latents, of a patch, of a map of places
