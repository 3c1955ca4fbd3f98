"""Evaluate, measure, analyse. Trains nothing: train.py does.

python run.py                                                     one configuration: clean text, no transform
python run.py embed_source=noisy embed_transform=anchor_offset    a distortion, and a transform that repairs it
python run.py -m sweep=embed35                                    35 transforms, with a ranked analysis and a page
python run.py experiment=auto_unseen                              a recorded experiment; conf/experiment/ has them all
python run.py task=pairs                                           prompts; task=prompts, embed, density then weigh them
"""

from latentwire.harness.app import Task, launch

TASKS = {
    "evaluate": Task(
        run="latentwire.evaluate_job:run", finish="latentwire.sweep:finish", direct="latentwire.rounds:direct"
    ),
    "list": Task(run="latentwire.evaluate_job:list_one"),
    "analyze": Task(run="latentwire.sweep:analyze_again"),
    "latent_report": Task(run="latentwire.latent_report:report"),
    "pairs": Task(run="kat.prepare:pairs"),
    "prompts": Task(run="kat.prepare:prompts"),
    "embed": Task(run="kat.embed_job:embed"),
    "retrieve": Task(run="kat.retrieve:retrieve"),
    "density": Task(run="kat.measure:density"),
    "subsample": Task(run="kat.measure:subsample"),
    "cluster": Task(run="kat.measure:clusters"),
    "project": Task(run="kat.measure:projection"),
    "score": Task(run="kat.score_job:score_file"),
    "diversity": Task(run="kat.diversity_job:diversity"),
    "verdict": Task(run="kat.verdict_job:verdict"),
}

if __name__ == "__main__":
    launch("run", TASKS, about=__doc__)
