"""The sizes that pictures may have, without torch: the configuration reads them."""

from typing import Literal

Size = Literal[32, 64, 128, 256]  # pixels a side
SIZE: Size = 64  # where nothing else is said: in a configuration, and in exports older than other sizes
