"""Arms of a study, which one would compare seed by seed."""

from __future__ import annotations

LORA = "model.lora={rank: 2}"


# overrides of arms that one would compare seed by seed
ARMS = {
    "lambda 0": ["objective.rtd_weight=0"],
    "sampled": ["objective.fidelity=sampled"],
    "another sentence's z": ["objective.condition=other"],
    "detached z": ["objective.condition=detached"],
    "official": ["objective.fidelity=official"],
    "edits made before": ["objective.edits=1"],
    "another discriminator": ["model.discriminator=embedded"],
    "adapters": [LORA],
    "adapters, lambda 0": [LORA, "objective.rtd_weight=0"],
}
