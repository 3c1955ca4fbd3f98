"""Question answering examples, and the prompts made from them.

Begin with `examples.load_data()`; `prompts.PromptWriter` then turns the examples into token ids.
"""
