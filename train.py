"""Train: whatever changes weights.

python train.py sampler=density                  GRPO; builds what is missing first
python train.py task=reward sampler=density      a reward model
python train.py -m sampler=uniform,density seed=0,1,2
"""

from latentwire.harness.app import Task, launch

TASKS = {
    "grpo": Task(run="kat.train_grpo:grpo"),
    "reward": Task(run="kat.train_reward:reward"),
}

if __name__ == "__main__":
    launch("train", TASKS)
