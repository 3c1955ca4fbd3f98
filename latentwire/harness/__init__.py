"""Infrastructure of every task: entries, config, devices, results, checkpoints and tracking.

Begin with `app.launch()`, which runs the task that a command line names.
"""

__version__ = "0.3.0"
