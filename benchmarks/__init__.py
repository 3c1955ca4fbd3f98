"""Measurements of speed; each file is a program."""
