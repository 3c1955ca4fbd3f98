"""kat: which prompts should a language model train on? Rare ones are sampled more often, and the effect is tested."""
