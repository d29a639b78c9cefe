"""Readers of checkpoint files, torch archives among them: no torch, nothing executed."""
