"""The base of all settings: typed, frozen, and strict about names."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings of one stage or command. Unknown keys are errors; a field's docstring is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
