"""Runs a recipe: store, stages, gates, report."""
