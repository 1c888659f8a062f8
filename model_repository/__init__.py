"""Triton Server models, shipped as data: one folder each with config.pbtxt and 1/model.py."""
