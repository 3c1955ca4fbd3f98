"""Questions about any text, written by the frozen model and filtered by its own answers.

Begin with `selection.py` (`choose_questions()`, the rules), then `writer.py` (`QuestionWriter`, the prompts) and
`task.py` (the task questions).
"""
