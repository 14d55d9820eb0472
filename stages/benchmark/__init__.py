"""`make bench` and `make growth`: this project's steps (subject), the plain way (plain), other packages (peers)."""
