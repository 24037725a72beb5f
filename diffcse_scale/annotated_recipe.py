"""A recipe as a YAML file in which every field stands with what it means."""

from __future__ import annotations

import textwrap

import yaml

from diffcse_scale.recipe import Section


def annotated(section: Section, indent: str = "") -> str:
    """YAML that reads back as `section`, a comment above each field."""
    values, lines = section.model_dump(mode="json"), []
    for name, field in type(section).model_fields.items():
        inner = getattr(section, name)
        about = field.description or type(inner).__doc__
        lines += textwrap.wrap(about or "", 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if isinstance(inner, Section):
            lines += [f"{indent}{name}:", annotated(inner, indent + "  ")]
        else:
            value = yaml.safe_dump(values[name], default_flow_style=True, width=10**6).removesuffix("...\n").rstrip()
            lines.append(f"{indent}{name}: {value}")
    return "\n".join(lines)
