"""The analysis of a sweep for readers: terminal text, an HTML page, figures and tables.

Begin with `text.py` (`render()`), then `html.py` (`write_report()`).
"""
