"""Evaluate, measure, analyse; trains nothing.

python run.py                                    one configuration
python run.py -m sweep=embed35                   the sweep
python run.py task=list sweep=embed35            its configurations by name
python run.py task=analyze summary=FILE          a finished sweep's analysis again
python run.py task=pairs pairs=nq_open           preference pairs, then task=prompts, task=embed
python run.py task=retrieve query='What is NLP?' the prompts nearest to it
"""

from latentwire.harness.app import Task, launch

TASKS = {
    "evaluate": Task(run="latentwire.sweep:run", finish="latentwire.sweep:finish"),
    "list": Task(run="latentwire.sweep:list_one"),
    "analyze": Task(run="latentwire.sweep:analyze_again"),
    "pairs": Task(run="kat.prepare:pairs"),
    "prompts": Task(run="kat.prepare:prompts"),
    "embed": Task(run="kat.embed_job:embed"),
    "retrieve": Task(run="kat.retrieve:retrieve"),
}

if __name__ == "__main__":
    launch("run", TASKS)
