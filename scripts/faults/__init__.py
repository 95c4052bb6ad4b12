"""A campaign of faults: runs are killed, starved and damaged at many moments, resumed, and compared with one left alone."""
