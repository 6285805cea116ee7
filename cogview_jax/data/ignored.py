"""The files and entries in the place of a data set that are no records, counted by reason."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cogview_jax.data.records import printable

#: At most so many reasons are named.
_REASONS = 8
# Files with these endings may hold captions, so they are named before other ignored files.
_TEXTS = tuple(f"of ending {ending}" for ending in (".json", ".jsonl", ".csv", ".tsv", ".parquet"))


@dataclass
class Ignored:
    """How many files are no records for each reason, and the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Counts `count` files that are ignored for the same `reason`; `name` is the first."""
        if count:
            self.counts[reason] += count
            self.first.setdefault(reason, name)

    def update(self, others: Mapping[str, tuple[int, str]]) -> None:
        """Counts those of `others`, as `reasons` gives them, too."""
        for reason, (count, name) in others.items():
            self.add(reason, name, count)

    def reasons(self) -> dict[str, tuple[int, str]]:
        """From each reason to how many are ignored for it, and the name of the first."""
        return {reason: (count, self.first[reason]) for reason, count in self.counts.items()}

    def __str__(self) -> str:
        """Returns one line: `ignored 13: 9 of ending .heic (such as a/1.heic), 4 hidden (...)`."""
        if not self.counts:
            return "nothing ignored"
        reasons = sorted(
            self.counts, key=lambda reason: (_is_common(reason), -self.counts[reason], reason)
        )
        parts = [
            f"{self.counts[reason]} {reason}"
            f" ({'such as ' if self.counts[reason] > 1 else ''}{printable(self.first[reason])})"
            for reason in reasons[:_REASONS]
        ]
        if rest := sum(self.counts[reason] for reason in reasons[_REASONS:]):
            parts.append(f"{rest} of other endings")
        return f"ignored {self.counts.total()}: {', '.join(parts)}"


def _is_common(reason: str) -> bool:
    """Returns whether a reason tells a user little; the others are named first."""
    return reason.startswith("of ending") and reason not in _TEXTS
