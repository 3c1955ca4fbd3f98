"""Train policies with GRPO, reward models, and encoders for a frozen language model.

python train.py sampler=density                                     GRPO on rare prompts; makes missing files first.
python train.py -m sampler=uniform,density seed=0,1,2               Six such runs, to compare.
python train.py task=reward                                         A reward model.
python train.py task=latent encoder=bottleneck loss=reconstruction  An encoder, in minutes.
python train.py experiment=latent_2x                                A recorded experiment; conf/experiment/ has all.
"""

from latentwire.harness.app import launch
from latentwire.harness.session import Task

TASKS = {
    "grpo": Task(run="kat.grpo.task:grpo"),
    "reward": Task(run="kat.reward.task:reward"),
    "world": Task(run="kat.world.task:world"),
    "mode_collapse": Task(
        run="kat.collapse.training:run",
        finish="kat.collapse.training:finish",
        direct="kat.collapse.training:direct",
        costs="kat.collapse.training:costs",
        takes_workers=True,
    ),
    "latent": Task(
        run="latentwire.latent_training.screening:run",
        finish="latentwire.latent_training.screening:finish",
        direct="latentwire.latent_training.screening:direct",
    ),
    "latent_norm": Task(
        run="latentwire.latent_training.norm:run",
        finish="latentwire.latent_training.norm:finish",
        direct="latentwire.latent_training.norm:direct",
    ),
}

if __name__ == "__main__":
    launch("train", TASKS, about=__doc__)
