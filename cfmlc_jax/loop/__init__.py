"""The loop: mesh, state, steps, training and evaluation, composed from the rooms above."""
