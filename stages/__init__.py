"""What is done: one verb a file, one Make target a verb."""
