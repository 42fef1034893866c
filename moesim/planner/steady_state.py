"""A steady state in closed form: a full decode batch, interrupted by the prompts that keep it full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesim.costs.closed_form import Batch, StepEstimate, estimate_steps
from moesim.costs.layout import make_layout
from moesim.errors import InputError
from moesim.metrics.result import memory_dict
from moesim.placement.fit import require_fit
from moesim.placement.memory import MemoryPlan
from moesim.specs.scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class SteadyState:
    """One decode step and one prompt of a scenario, and the rates that follow for a batch kept full."""

    scenario: Scenario
    batch: int
    decode: StepEstimate
    prefill: StepEstimate
    memory: MemoryPlan

    @property
    def title(self) -> str:
        """What was estimated."""
        cluster, deployment = self.scenario.cluster, self.scenario.deployment
        return (
            f"{self.scenario.model.name} on {cluster.num_accelerators} x {cluster.accelerator.name}, "
            f"tp {deployment.tensor_parallel_size}, ep {deployment.expert_parallel_size}, batch {self.batch}"
        )

    @property
    def seconds_per_token(self) -> float:
        """Seconds between two tokens of a sequence, its neighbours' prompts included."""
        outputs = max(self.scenario.workload.output_tokens, 1)
        return self.decode.seconds + self.batch * self.prefill.seconds / outputs

    def rows(self) -> list[dict[str, Any]]:
        """Milliseconds by operator for the decode step and the prompt."""
        names = sorted({*self.decode.operators, *self.prefill.operators})
        rows = [
            {
                "operator": name,
                "decode_ms": self.decode.operators.get(name, 0.0) * 1e3,
                "decode_share": f"{self.decode.operators.get(name, 0.0) / self.decode.seconds:.1%}",
                "prefill_ms": self.prefill.operators.get(name, 0.0) * 1e3,
                "prefill_share": f"{self.prefill.operators.get(name, 0.0) / self.prefill.seconds:.1%}",
            }
            for name in names
        ]
        rows.sort(key=lambda row: -float(row["decode_ms"]))
        return [*rows, self._host_row()]

    def _host_row(self) -> dict[str, Any]:
        gaps = [step.seconds - step.gpu_s for step in (self.decode, self.prefill)]
        return {
            "operator": "host (exposed)",
            "decode_ms": gaps[0] * 1e3,
            "decode_share": f"{gaps[0] / self.decode.seconds:.1%}",
            "prefill_ms": gaps[1] * 1e3,
            "prefill_share": f"{gaps[1] / self.prefill.seconds:.1%}",
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per operator: milliseconds and shares of the decode step and of the prompt."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract of `moesim estimate`."""
        ranks = self.scenario.deployment.data_parallel_size
        accelerator = self.scenario.cluster.accelerator
        imbalance = self.decode.operators.get("routed experts", 0.0) - self.decode.mean_rank_experts_s
        return {
            "model": self.scenario.model.name,
            "hardware": accelerator.name,
            "batch": self.batch,
            "decode_step_ms": self.decode.seconds * 1e3,
            "prefill_step_ms": self.prefill.seconds * 1e3,
            "tpot_ms": self.seconds_per_token * 1e3,
            "output_tokens_per_s": self.batch * ranks / self.seconds_per_token,
            "decode_limited_by": self.decode.limited_by,
            "prefill_limited_by": self.prefill.limited_by,
            "decode_hbm_bytes": self.decode.hbm_bytes,
            "decode_flops": self.decode.flops,
            "expert_imbalance_ms": max(imbalance, 0.0) * 1e3,
            "breakdown": self.rows(),
            "memory": memory_dict(self.memory),
            "parameter_set": {"name": self.scenario.parameters.name, "calibrated": self.scenario.parameters.calibrated},
            "digest": self.scenario.digest(),
        }


def steady_state(scenario: Scenario, batch: int) -> SteadyState:
    """Estimate a scenario's steady state with `batch` sequences decoding on every data-parallel rank.

    Raises:
        InputError: masked-diffusion model, a batch above max_num_seqs, or a model that does not fit.
    """
    if scenario.model.is_diffusion:
        raise InputError(f"estimate: {scenario.model.name} decodes by diffusion; use moesim simulate")
    deployment, workload = scenario.deployment, scenario.workload
    if not 1 <= batch <= deployment.max_num_seqs:
        raise InputError(f"batch: {batch} is out of range, must be 1 to max_num_seqs = {deployment.max_num_seqs}")
    longest = workload.input_tokens + workload.output_tokens
    memory = require_fit(scenario.model, deployment, scenario.cluster, longest)
    layout = make_layout(
        scenario.model, deployment, scenario.cluster, scenario.parameters, scenario.routing, scenario.seed
    )
    middle = workload.input_tokens + workload.output_tokens // 2
    prompt = min(workload.input_tokens, deployment.max_num_batched_tokens)
    decode = Batch(decodes=batch, context_tokens=middle)
    prefill = Batch(prompts=1, prompt_tokens=prompt)
    return SteadyState(scenario, batch, *estimate_steps(layout, (decode, prefill)), memory=memory)
