"""Tests of kat/data."""
