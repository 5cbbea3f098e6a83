"""Pure decisions: what must exist, given what is wanted and what is seen."""
