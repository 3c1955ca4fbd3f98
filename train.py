"""Train: encoders that a frozen language model reads, reward models, and policies by GRPO.

python train.py sampler=density                                     GRPO on rare prompts; builds first what is missing
python train.py -m sampler=uniform,density seed=0,1,2               six such runs, to compare
python train.py task=reward                                         a reward model
python train.py task=latent encoder=bottleneck loss=reconstruction  an encoder, in minutes
python train.py experiment=latent_2x                                a recorded experiment; conf/experiment/ has them all
"""

from latentwire.harness.app import Task, launch

TASKS = {
    "grpo": Task(run="kat.train_grpo:grpo"),
    "reward": Task(run="kat.train_reward:reward"),
    "latent": Task(run="latentwire.screen:run", finish="latentwire.screen:finish", direct="latentwire.screen:direct"),
}

if __name__ == "__main__":
    launch("train", TASKS, about=__doc__)
