"""Measuring: how long things take and how good they are. `occ bench` prints it, the tables in benchmarks/ keep it."""
