"""Training of a policy by GRPO (task=grpo): rollouts, rewards, objective, optimizer steps and held-out evaluation.

Begin reading in `task.py` (`grpo()`, the loop), then `step.py` (one step) and `objective.py` (the loss).
"""
