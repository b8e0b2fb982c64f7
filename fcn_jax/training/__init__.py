"""The parts of a training run; the loop that joins them is `fcn_jax/train.py`.

train_step.py     the training step of one device
objective.py      what a step minimises: losses of all heads over blocks, parts and devices
losses/           the losses, and the interface of a loss of your own
loss_check.py     checks a loss of your own on a few pixels
class_weights.py  class weights against class imbalance
optim.py          optimizers, learning rates, weight decay
feed.py           training input: resident in device memory, or streamed
checkpoint.py     checkpoints: a reader for every command, a writer for training
checksums.py      checksums of the files of a checkpoint
memory_check.py   checks before training that a step fits in memory
ahead_of_time.py  compiles the step for devices that are absent
metric_logger.py  averages the metrics of steps and logs them
run_lock.py       lets one process at a time train in a folder
run_log.py        log.jsonl and TensorBoard
"""
