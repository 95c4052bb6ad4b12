"""Explicit broadcasting of channel vectors, because this project forbids silent rank promotion."""


def along_last(vector, x):
    """The vector with the rank of x: [c], [..., c] -> [1, …, c]."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)
