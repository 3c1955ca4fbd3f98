"""Tests of kat/density."""
