"""Evaluation: published protocols as pure functions, and their report."""
