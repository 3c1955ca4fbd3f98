"""Evaluate, measure, analyse. For training, use train.py.

python run.py                                                     One configuration: clean text, no transform.
python run.py embed_source=noisy embed_transform=anchor_offset    A distortion and a transform that repairs it.
python run.py -m sweep=embed35                                    35 transforms, with a ranking and a page.
python run.py experiment=auto_unseen                              A recorded experiment; conf/experiment/ has all.
python run.py task=pairs                                          Prompts; task=prompts, embed, density then weigh them.
"""

from latentwire.harness.app import launch
from latentwire.harness.session import Task

TASKS = {
    "evaluate": Task(
        run="latentwire.evaluation.task:run",
        finish="latentwire.sweeps.task:finish",
        direct="latentwire.sweeps.schedule:direct",
        costs="latentwire.evaluation.cost:costs",
    ),
    "list": Task(run="latentwire.evaluation.task:list_one"),
    "analyze": Task(run="latentwire.sweeps.task:analyze_again"),
    "latent_report": Task(run="latentwire.evaluation.latent_report:report"),
    "questions": Task(
        run="latentwire.questions.task:questions",
        divides_itself=True,
        start_anew="latentwire.questions.task:start_questions_anew",
        takes_workers=True,
    ),
    "passages": Task(run="latentwire.latent_training.generated:passages"),
    "pairs": Task(run="kat.pipeline.prepare:pairs"),
    "prompts": Task(run="kat.pipeline.prepare:prompts"),
    "embed": Task(
        run="kat.pipeline.embed:embed",
        divides_itself="kat.pipeline.artifacts:writes_shards",
        start_anew="kat.pipeline.embed:start_embed_anew",
        takes_workers=True,
    ),
    "retrieve": Task(run="kat.pipeline.retrieve:retrieve"),
    "density": Task(
        run="kat.pipeline.density:density",
        divides_itself="kat.pipeline.artifacts:writes_shards",
        start_anew="kat.pipeline.density:start_density_anew",
        takes_workers=True,
    ),
    "subsample": Task(run="kat.pipeline.subsample:subsample"),
    "cluster": Task(run="kat.pipeline.cluster:clusters"),
    "project": Task(run="kat.pipeline.project:projection"),
    "score": Task(run="kat.reward.score:score_file"),
    "truth": Task(run="kat.world.task:truth"),
    "diversity": Task(run="kat.diversity.task:diversity"),
    "verdict": Task(run="kat.collapse.task:verdict"),
}

if __name__ == "__main__":
    launch("run", TASKS, about=__doc__)
