"""One measured quantity beside its prediction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ValidationRow:
    """A measured quantity, its prediction and 90 % interval.

    `in_fit`: whether the constants were fitted to it; `flaw`: what disturbed the measurement ("" for nothing known).
    """

    id: str
    metric: str
    measured: float
    predicted: float
    predicted_low: float
    predicted_high: float
    group: str
    in_fit: bool
    flaw: str = ""

    @property
    def relative_error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1
