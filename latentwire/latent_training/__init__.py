"""Training of latent encoders with a frozen LM: data, losses, the training loop and the screening of candidates.

Begin reading in `task.py` (`latent()`, one run); `objective.py` has the losses and `screening.py` the sweep.
"""
