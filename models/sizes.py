"""Sizes that networks and the configuration's rules agree on, without torch."""

ATTENDED = 8  # side of the map at which the vector GAN's self-attention works
CELL = 8  # pixels a side of a cell: of the autoencoder's latents, of a patch, of a map of places


def heads_at(width: int, heads: int | None, head_width: int | None) -> int:
    """Returns the attention heads of a layer of `width`: `heads`, or as many as are `head_width` wide, at least one."""
    if heads is not None:
        return heads
    assert head_width is not None, "one of heads and head_width is given"
    return max(1, width // head_width)
