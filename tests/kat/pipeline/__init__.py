"""Tests of kat/pipeline."""
