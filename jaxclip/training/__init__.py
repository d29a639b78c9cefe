"""The paper's optimiser, one training step in its several forms, and the loop around it."""
