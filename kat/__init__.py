"""Which prompts should a language model train on? Rare ones more often."""
