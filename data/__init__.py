"""What goes in: the label vocabulary, image sets, the scene renderer."""
