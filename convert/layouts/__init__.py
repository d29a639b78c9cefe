"""Names, shapes and configs of each project's checkpoints, as tables."""
