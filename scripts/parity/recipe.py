"""The training that is compared: the reference's own, where its published numbers can be."""

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 1e-4
# The start of the published cycle, where steps are small: at its peak, Adam makes whole steps of
# what is rounding in the gradient, and two float32 runs part company within three of them.
EPOCHS, STEPS_PER_EPOCH = 80, 100
PCT_START = 0.2
# The published 0.9997 moves an average by less than float32 resolves in a few steps.
EMA_DECAY = 0.9
