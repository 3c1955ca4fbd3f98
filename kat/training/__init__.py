"""Parts that task=grpo and task=reward share: trainable weights, loop state, and checks of what a model was trained on.

Begin reading in `state.py` (settings and state of a loop), then `tuning.py` (which weights are trained).
"""
