"""Benchmarks of speed and memory. Each file is a program.

Begin with `sweep`: `python -m benchmarks.sweep` compares the sweep with two simpler implementations.
"""
