"""Check whether a server's vectors agree with those of the exported folder.

    python examples/served.py FOLDER http://localhost:8080 [--name NAME]

It works with any server that answers /v1/embeddings: text-embeddings-inference, vLLM, Ollama, llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import sys
from urllib.request import Request, urlopen

import numpy as np
from sentence_transformers import SentenceTransformer

LEAST = 0.999  # cosine
SENTENCES = [
    "A man is playing a guitar.",
    "Somebody makes music.",
    "Stock prices fell sharply on Monday.",
    "THE TITLE IS IN CAPITALS",
    "Er wohnt in Zürich.",
    "It costs $4.99 (or 3,50 EUR).",
    "No.",
    "The quick brown fox jumps over the lazy dog near the river bank at dawn.",
    "e-mail: someone@example.org",
    "In 1969 two people walked on the moon.",
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", help="A folder that `diffcse-scale export` wrote.")
parser.add_argument("address", help="Address of the server, without /v1/embeddings.")
parser.add_argument("--name", help="The server's name for the model (default: the folder).")
arguments = parser.parse_args()

body = json.dumps({"model": arguments.name or arguments.folder, "input": SENTENCES}).encode()
request = Request(f"{arguments.address.rstrip('/')}/v1/embeddings", body, {"Content-Type": "application/json"})
try:
    with urlopen(request, timeout=60) as answer:
        rows = sorted(json.load(answer)["data"], key=lambda row: row["index"])
except OSError as error:  # no server answers, or it does not know the model
    sys.exit(f"{request.full_url}: {error}; give the address and, as --name, what the server calls the model.")
served = np.array([row["embedding"] for row in rows])
expected = SentenceTransformer(arguments.folder, device="cpu").encode(SENTENCES).astype(float)
if served.shape != expected.shape:
    sys.exit(f"The server's vectors are of shape {served.shape}, the folder's of {expected.shape}.")
served, expected = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (served, expected))
cosines = (served * expected).sum(1)
print(f"smallest cosine: {cosines.min():.5f} ({SENTENCES[cosines.argmin()]!r})")
sys.exit(0 if cosines.min() >= LEAST else 1)
