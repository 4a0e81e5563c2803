"""Losses: pure functions, one file a family."""
