"""Tests of kat/shards."""
