"""Evaluate, measure, analyse; trains nothing.

python run.py                                    one configuration
python run.py -m sweep=embed35                   the sweep
python run.py task=list sweep=embed35            its configurations by name
python run.py task=analyze summary=FILE          a finished sweep's analysis again
python run.py task=latent_report checkpoint=...   a trained encoder beside its controls at equal positions
python run.py task=pairs pairs=nq_open           preference pairs, then task=prompts, task=embed
python run.py task=retrieve query='What is NLP?' the prompts nearest to it
python run.py task=density                       embeddings -> sampling weights, with diagnostics
python run.py task=subsample budget=1000         prompts drawn by these weights
python run.py task=cluster                       clusters of prompts
python run.py task=project                       the map of prompt space, a page to turn and search
python run.py task=score reward=FOLDER path=FILE a reward model judges pairs, by subset
python run.py task=diversity a=RUN b=RUN         how diverse are the completions of two checkpoints
python run.py task=verdict 'reports=[A,B,C]'     the same over several pairs of runs, with intervals over seeds
"""

from latentwire.harness.app import Task, launch

TASKS = {
    "evaluate": Task(
        run="latentwire.evaluation.task:run",
        finish="latentwire.sweeps.task:finish",
        direct="latentwire.sweeps.schedule:direct",
    ),
    "list": Task(run="latentwire.evaluation.task:list_one"),
    "analyze": Task(run="latentwire.sweeps.task:analyze_again"),
    "latent_report": Task(run="latentwire.evaluation.latent_report:report"),
    "pairs": Task(run="kat.pipeline.prepare:pairs"),
    "prompts": Task(run="kat.pipeline.prepare:prompts"),
    "embed": Task(run="kat.pipeline.embed:embed"),
    "retrieve": Task(run="kat.pipeline.retrieve:retrieve"),
    "density": Task(run="kat.pipeline.density:density"),
    "subsample": Task(run="kat.pipeline.subsample:subsample"),
    "cluster": Task(run="kat.pipeline.cluster:clusters"),
    "project": Task(run="kat.pipeline.project:projection"),
    "score": Task(run="kat.reward.score:score_file"),
    "diversity": Task(run="kat.diversity.task:diversity"),
    "verdict": Task(run="kat.diversity.verdict_task:verdict"),
}

if __name__ == "__main__":
    launch("run", TASKS)
