"""`model.dropout` sets every dropout that a configuration knows."""

from __future__ import annotations

import pytest
from transformers import BloomConfig, MambaConfig

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.dropout import set_dropout


def test_a_configuration_without_dropout_cannot_be_given_one():
    with pytest.raises(InputError, match="the configuration of mamba has no dropout"):
        set_dropout(MambaConfig(), 0.1)
    config = BloomConfig()
    set_dropout(config, 0.25)
    assert (config.hidden_dropout, config.attention_dropout) == (0.25, 0.25)
