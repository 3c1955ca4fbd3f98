"""Tests of kat."""
