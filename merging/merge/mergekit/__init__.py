"""mergekit's YAML files, under the rules of mergekit 0.1.5."""

from merging.merge.mergekit.document import Document
from merging.merge.mergekit.parsing import parse, read
from merging.merge.mergekit.planning import Merge, plan
from merging.merge.mergekit.vocabulary import Vocabulary

__all__ = ["Document", "Merge", "Vocabulary", "parse", "plan", "read"]
