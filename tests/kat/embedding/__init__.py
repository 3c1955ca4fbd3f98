"""Tests of kat/embedding."""
