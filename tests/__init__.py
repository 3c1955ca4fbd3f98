"""The test suite: one test file for each module, and in `helpers` what several of them use."""
