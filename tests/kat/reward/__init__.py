"""Tests of kat/reward."""
