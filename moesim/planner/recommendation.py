"""What the planner answers: deployments in order, with reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesim.metrics.result import SimulationResult
from moesim.placement.strategies import Refusal
from moesim.specs.deployment import Deployment

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Candidate:
    """One deployment at one queue depth, simulated. `score` is higher for better."""

    deployment: Deployment
    predicted: SimulationResult
    score: float
    meets_slo: bool
    command: str
    equal_to: tuple[str, ...] = ()

    def to_dict(self, rank: int) -> dict[str, Any]:
        """The JSON contract of one recommendation."""
        deployment, predicted = self.deployment, self.predicted
        return {
            "rank": rank,
            "strategy": deployment.strategy,
            "equal_to": list(self.equal_to),
            "tensor_parallel_size": deployment.tensor_parallel_size,
            "data_parallel_size": deployment.data_parallel_size,
            "expert_parallel_size": deployment.expert_parallel_size,
            "pipeline_parallel_size": deployment.pipeline_parallel_size,
            "max_num_seqs": deployment.max_num_seqs,
            "memory_per_gpu_bytes": predicted.memory.reserved_bytes,
            "predicted": predicted.to_dict(),
            "limited_by": predicted.breakdown.limited_by,
            "meets_slo": self.meets_slo,
            "command": self.command,
        }


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Candidates from best to worst, strategies refused with the reason, and the explanation in sentences."""

    candidates: tuple[Candidate, ...]
    refused: tuple[Refusal, ...]
    objective: str
    explanation: tuple[str, ...]

    @property
    def best(self) -> Candidate:
        """The winner."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract of `moesim recommend`."""
        return {
            "recommendations": [item.to_dict(rank) for rank, item in enumerate(self.candidates, start=1)],
            "refused": [{"strategy": item.name, "reason": item.reason} for item in self.refused],
            "objective": self.objective,
            "explanation": list(self.explanation),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per candidate, best first."""
        import pandas as pd

        return pd.DataFrame([candidate_row(item, rank) for rank, item in enumerate(self.candidates, start=1)])


def candidate_row(item: Candidate, rank: int) -> dict[str, Any]:
    """A candidate as one flat row."""
    predicted, deployment = item.predicted, item.deployment
    return {
        "rank": rank,
        "strategy": deployment.strategy,
        "tp": deployment.tensor_parallel_size,
        "dp": deployment.data_parallel_size,
        "ep": deployment.expert_parallel_size,
        "max_num_seqs": deployment.max_num_seqs,
        "output_tokens_per_s": predicted.output_tokens_per_s,
        "ttft_p50_ms": predicted.ttft_ms.p50 if predicted.ttft_ms else None,
        "tpot_p50_ms": predicted.tpot_ms.p50 if predicted.tpot_ms else None,
        "memory_per_gpu_gb": predicted.memory.reserved_bytes / 1e9,
        "limited_by": predicted.breakdown.limited_by,
        "meets_slo": item.meets_slo,
    }
