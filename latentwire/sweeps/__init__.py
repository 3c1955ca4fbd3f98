"""Many configurations: their controls, an optional time limit, and the analysis at the end.

Begin with `task.py` (`finish()` writes summary and report); `schedule.py` decides which configurations run when.
"""
