from typing import NamedTuple


class Metric(NamedTuple):
    name: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    name: str
    value: str
