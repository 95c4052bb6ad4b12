"""The recipe of the compared training: the reference's, with its published numbers where possible."""

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 1e-4
# Training starts at the beginning of the published cycle, where steps are small. At its peak, Adam turns rounding
# errors of the gradient into full steps, and two float32 runs diverge within three steps.
EPOCHS, STEPS_PER_EPOCH = 80, 100
PCT_START = 0.2
# With the published 0.9997 an average would change in a few steps by less than float32 resolves.
EMA_DECAY = 0.9
