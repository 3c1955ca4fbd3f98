"""Train: whatever changes weights.

python train.py sampler=density                  GRPO; builds what is missing first
python train.py task=reward sampler=density      a reward model
python train.py task=latent encoder=bottleneck   an encoder whose latents a frozen LM reads
python train.py -m sweep=latent_screen           which transform to train it with
python train.py -m sampler=uniform,density seed=0,1,2
"""

from latentwire.harness.app import Task, launch

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
    launch("train", TASKS)
