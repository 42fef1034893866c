"""What the measuring client asks of a vLLM server's workers (`--worker-extension-cls`)."""

from __future__ import annotations

import json
from typing import Any

from hw_validation.dummy_weights import condition_weights, estimate_loads


class WorkerExtension:
    """Mixed into vLLM's worker; called through the server's `/collective_rpc` (development mode)."""

    model_runner: Any

    def condition_dummy_weights(self, top_k: str) -> str:
        """Make random weights route as trained ones do (`dummy_weights`); the resulting load figures as JSON."""
        model = self.model_runner.get_model()
        return json.dumps(condition_weights(model) | estimate_loads(model, int(top_k)))
