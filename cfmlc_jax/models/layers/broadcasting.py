"""Vectors of channels beside arrays of any rank: ranks are not promoted silently in this project."""


def along_last(vector, x):
    """A [c] vector with the rank of x [..., c]."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)
