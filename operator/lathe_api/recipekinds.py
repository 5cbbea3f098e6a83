"""Recipes that are documents of their own, to be used by many models."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lathe_api.base import API_VERSION, ApiModel, Text
from lathe_api.findings import refuse
from lathe_api.objects import ObjectMeta
from lathe_api.recipe import Stage
from lathe_api.stageorder import stage_findings


class RecipeSpec(ApiModel):
    """A stage list with a purpose."""

    description: Text = ""
    """What it is good for, and what it needs."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=32)]
    """The steps, in order."""

    @model_validator(mode="after")
    def _possible(self) -> "RecipeSpec":
        refuse("recipe", stage_findings(self.stages))
        return self


class OptimizationRecipe(ApiModel):
    """A stage list for the models of one namespace."""

    api_version: Literal["lathe.dev/v1alpha1"] = API_VERSION
    """Group and version."""
    kind: Literal["OptimizationRecipe"] = "OptimizationRecipe"
    """Kind of the document."""
    metadata: ObjectMeta
    """Name, by which models refer to it, and namespace."""
    spec: RecipeSpec
    """The stages."""


class ClusterOptimizationRecipe(ApiModel):
    """A stage list for the models of all namespaces."""

    api_version: Literal["lathe.dev/v1alpha1"] = API_VERSION
    """Group and version."""
    kind: Literal["ClusterOptimizationRecipe"] = "ClusterOptimizationRecipe"
    """Kind of the document."""
    metadata: ObjectMeta
    """Name, by which models refer to it."""
    spec: RecipeSpec
    """The stages."""
