"""2 000 broken documents: each is understood, or answered by problems that name a place and say what to write."""

import random
from pathlib import Path

import yaml
from support.fuzzing import mutated_tree

from lathe_api.documents import inspect_text

EXAMPLE = Path(__file__).parents[3] / "examples" / "digits" / "model.yaml"
DOCUMENTS = 2000


def test_every_broken_document_is_understood_or_explained() -> None:
    choose = random.Random(0)  # noqa: S311 - the same documents in every run
    tree = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    understood = 0
    for number in range(DOCUMENTS):
        text = yaml.safe_dump(mutated_tree(tree, choose), allow_unicode=True, sort_keys=False)
        found = inspect_text(text, "model.yaml")
        understood += bool(found.documents)
        assert found.documents or found.problems, f"document {number} is neither understood nor refused:\n{text}"
        for problem in found.problems:
            assert problem.remedy, f"document {number}: {problem} does not say what to write\n{text}"
    assert 0 < understood < DOCUMENTS
