"""What is learned: networks and mathematics. Pure: no files, no devices of their own, no loops, no printing."""
