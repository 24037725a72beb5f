"""Masks everything that looks like a secret in command lines and settings before they are written to files."""

from __future__ import annotations

import re
from collections.abc import Sequence

MASK = "***"
# names (by their last part) with secret values; "tokens" and "tokenizer" must not match
NAMES = (
    r"(?:[\w.-]*[-_.])?(?:token|password|passwd|passphrase|secret|credentials?|(?:api|access|secret|private)[-_]?key)"
)
_OPTION = re.compile(rf"--?{NAMES}", re.IGNORECASE)
_VALUE = r"[^\s&;,'\"}]+"
_MASKED = (
    (re.compile(rf"(?i)((?:^|[\s?&;,{{'\"-]){NAMES}=['\"]?){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)(['\"]{NAMES}['\"]\s*:\s*)(?:\"[^\"]*\"|'[^']*'|[^\s,}}]+)"), rf'\1"{MASK}"'),  # JSON
    (re.compile(rf"(?im)(^\s*{NAMES}:\s+['\"]?){_VALUE}"), rf"\1{MASK}"),  # YAML
    (re.compile(r"(?i)([?&](?:sig|signature|x-amz-\w+|x-goog-\w+|awsaccesskeyid)=)[^\s&]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@"), rf"\1{MASK}@"),
    # Hugging Face, OpenAI, GitHub, GitLab, Slack, Amazon, Weights & Biases' and JSON web tokens
    (
        re.compile(
            r"\b(?:hf_\w{8,}|sk-[\w-]{16,}|gh[opsur]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{8,}|"
            r"A[KS]IA[0-9A-Z]{16}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*)"
        ),
        MASK,
    ),
)


def masked(text: str) -> str:
    """Mask likely secrets in a text: values of names like `token`, passwords in addresses, known formats of keys."""
    for pattern, replacement in _MASKED:
        text = pattern.sub(replacement, text)
    return text


def masked_command(words: Sequence[str]) -> str:
    """A command line as one text with secrets masked, including the word after `--token` and similar options."""
    before = ["", *words[:-1]]
    return " ".join(MASK if _OPTION.fullmatch(name) else masked(word) for name, word in zip(before, words, strict=True))
