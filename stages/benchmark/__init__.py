"""`make bench` and `make growth`: time our steps (subject), the plain way (plain) and other packages (peers)."""
