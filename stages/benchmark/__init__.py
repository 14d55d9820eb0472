"""What `make bench` measures: this project's steps (subject), the plain way (plain), other packages (peers)."""
