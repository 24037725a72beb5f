"""`diffcse-scale prepare`: puts a recipe's corpus into the cache in the form that training reads."""

from __future__ import annotations

from diffcse_scale.generator.editing import make_edits
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.cache import cache_folder
from diffcse_scale.text.tokens import tokenize


def prepare_corpus(recipe: Recipe) -> None:
    """Clean and tokenize the corpus, edit it if the recipe requests edits, and print a summary."""
    tokenizers = load_tokenizers(recipe.model)
    if recipe.objective.edits is None:
        tokens = tokenize(recipe.data, tokenizers.streams, seed=recipe.seed)
    else:
        tokens = make_edits(recipe, tokenizers)
    print(
        f"{len(tokens):,} sentences are ready in {cache_folder(recipe.data)}; {tokens}. The first, as they were read:"
    )
    if tokens.report.pairs:
        print(f"  ({tokens.report.pairs})")
    for row in tokens.first:
        print(f"  {row}")
    if recipe.objective.edits is not None:
        print(f"Train with objective.edits={recipe.objective.edits}: no generator is needed.")
