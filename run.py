"""Evaluate, measure, analyse; trains nothing.

python run.py                                    one configuration
python run.py -m sweep=embed35                   the sweep
python run.py task=list sweep=embed35            its configurations by name
python run.py task=analyze summary=FILE          a finished sweep's analysis again
"""

from latentwire.harness.app import Task, launch

TASKS = {
    "evaluate": Task(run="latentwire.sweep:run", finish="latentwire.sweep:finish"),
    "list": Task(run="latentwire.sweep:list_one"),
    "analyze": Task(run="latentwire.sweep:analyze_again"),
}

if __name__ == "__main__":
    launch("run", TASKS)
