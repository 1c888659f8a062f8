"""Fused Triton-language kernels, one file per op."""
