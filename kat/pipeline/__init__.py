"""The tasks of run.py from preference data to sampling weights, and checks that their files belong together.

Begin with `prepare.py` (tasks pairs and prompts), then `embed.py` and `density.py`. `ensure.py` runs missing steps.
"""
