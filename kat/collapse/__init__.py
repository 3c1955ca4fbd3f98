"""Does a way of drawing prompts reduce mode collapse? Measures, statistics over seeds, and the page of an experiment.

Begin with `task.py` (`verdict()`), then `measures.py` (what is measured) and `table.py` (how arms are compared).
"""
