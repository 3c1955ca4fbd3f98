"""Tests of kat/world."""
