"""The test suite: one test file for each module, and shared functions in `helpers`."""
