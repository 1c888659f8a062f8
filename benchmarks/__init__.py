"""Measurements: one file per question, results with their provenance."""
