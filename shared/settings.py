"""The base of all settings: typed, frozen, and strict about names."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings of one stage or command. Unknown keys are errors; a field's docstring is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    HOW: ClassVar[frozenset[str]] = frozenset()
    """Names of settings that say how something is made, not what: with another value the result is as good, and what
    is finished stays."""

    def what(self) -> dict[str, Any]:
        """The other settings, as JSON has them: what names a result."""
        found = self.model_dump(mode="json", exclude=set(self.HOW))
        groups = {name: getattr(self, name) for name in found}
        return found | {name: group.what() for name, group in groups.items() if isinstance(group, Settings)}
