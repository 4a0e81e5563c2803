"""Answers of many frames fused into one map fixed in the world, and what a planner gets of it. See docs/mapping.md."""
