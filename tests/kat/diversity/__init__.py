"""Tests of kat/diversity."""
