"""Train: encoders that a frozen language model reads, reward models, and policies by GRPO.

python train.py sampler=density                                     GRPO on rare prompts; builds first what is missing
python train.py -m sampler=uniform,density seed=0,1,2               six such runs, to compare
python train.py task=reward                                         a reward model
python train.py task=latent encoder=bottleneck loss=reconstruction  an encoder, in minutes
python train.py experiment=latent_2x                                a recorded experiment; conf/experiment/ has them all
"""

from latentwire.harness.app import launch
from latentwire.harness.program import Task

TASKS = {
    "grpo": Task(run="kat.grpo.task:grpo"),
    "reward": Task(run="kat.reward.task:reward"),
    "latent": Task(
        run="latentwire.latent_training.screening:run",
        finish="latentwire.latent_training.screening:finish",
        direct="latentwire.latent_training.screening:direct",
    ),
}

if __name__ == "__main__":
    launch("train", TASKS, about=__doc__)
