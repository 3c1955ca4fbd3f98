"""Tests of kat/sampling."""
