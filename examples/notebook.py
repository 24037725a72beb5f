"""Train DiffCSE on a list of sentences, as in a notebook. `notebook.ipynb` has the same cells.

    python examples/notebook.py OUTPUT

For your own text use a recipe with a real backbone, such as "bert_base_sts".
"""

from __future__ import annotations

# %%
import sys

from diffcse_scale import DiffCSE
from diffcse_scale.embedded.grammar import graded_pairs, training_sentences

output = sys.argv[1] if len(sys.argv) == 2 else "runs/notebook"  # a notebook has other arguments

# %%
sentences = training_sentences(3_000, seed=7)
model = DiffCSE("quickstart", "max_steps=40", "evaluation.every=20").fit(
    sentences, output=output, development=graded_pairs(500, seed=8)
)

# %%
print(model.similarity(*model.encode(["The dog sleeps in the garden.", "A dog is asleep in the garden."])))
