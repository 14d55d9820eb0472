"""`make play`: a web page on this machine to place objects and watch the models draw them."""
