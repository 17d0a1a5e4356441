"""Leads with the skew of a sales team's years: campaigns of a month, agents who left, new leads that are recent.

Five classes exclude each other, each spread evenly over all time: leads that are converted, of COMMON_AGENT, of nobody,
of COMMON_POLICY, from COMMON_SOURCE. So each pair of them finds nothing, though each one finds many.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from itertools import accumulate

from bench.growth_rows import Clear, Rows

COMMON_AGENT, COMMON_POLICY, COMMON_SOURCE = "agent-00", "Travel", "branch"
FORMER_AGENT = "agent-99"
"""Has leads of the oldest tenth only."""
FORMER_POLICY = "Endowment 15-Year"
"""Was sold in the oldest fifth only."""
CAMPAIGNS = 30
"""Each brought leads in its own thirtieth of the time."""
IMPORTER = "importer"
"""Created the oldest leads only."""

_AGENTS = [f"agent-{number:02}" for number in range(1, 40)]
_POLICIES = ["Term Life 20-Year", "Whole Life", "Health Plus", "Motor", "Home", "Pension", "Child Education", "Micro"]
_FIRST = ["Md. ", "Md. Abdul ", "Mst. ", "Sheikh ", "John ", "Maria ", "মোঃ ", "রহিমা ", "Émile ", "Ana "]
_LAST = ["Rahman", "Hossain", "Begum", "Khatun", "Doe", "Garcia", "ইসলাম", "Uddin", "Núñez", "Chowdhury"]


def _zipf(count: int) -> list[float]:
    return list(accumulate(1 / rank for rank in range(1, count + 1)))


_AGENT_WEIGHTS, _POLICY_WEIGHTS = _zipf(len(_AGENTS)), _zipf(len(_POLICIES))


class SkewedRows(Rows):
    """`count` leads; the newest was created now."""

    def clear(self, number: int) -> Clear:
        """What stands in clear in the lead with this number."""
        chance, age = random.Random(number), 1 - number / self.count
        created = self.created_at(number)
        is_new = chance.random() < (0.8 if age < 0.05 else 0.02)
        status = "new" if is_new else chance.choices(("contacted", "not_interested"), (30, 70))[0]
        agent: str | None = (
            FORMER_AGENT if age > 0.9 and chance.random() < 0.2 else self._pick(chance, _AGENTS, _AGENT_WEIGHTS)
        )
        policy = (
            FORMER_POLICY if age > 0.8 and chance.random() < 0.3 else self._pick(chance, _POLICIES, _POLICY_WEIGHTS)
        )
        source = chance.choices(("website", f"campaign-{int((1 - age) * CAMPAIGNS):02}", None), (50, 40, 10))[0]
        match chance.choices(("status", "agent", "nobody", "policy", "source", ""), (12, 10, 12, 15, 20, 31))[0]:
            case "status":
                status, is_new = "converted", False
            case "agent":
                agent = COMMON_AGENT
            case "nobody":
                agent = None
            case "policy":
                policy = COMMON_POLICY
            case "source":
                source = COMMON_SOURCE
        changed = self._later(created, 10, chance)
        back = self._later(created, 60, chance) if chance.random() < 0.04 else None
        return Clear(
            name=f"{chance.choice(_FIRST)}{chance.choice(_LAST)} {number:07}",
            interested_policy=policy,
            status=status,
            updated_at=created if is_new else changed,
            version=1 if is_new else 3,
            created_by=IMPORTER if age > 0.97 else chance.choices(("chatbot", "whatsapp"), (85, 15))[0],
            assignee=agent,
            source=source,
            resubmissions=0 if back is None else 1,
            resubmitted_at=back,
        )

    def _later(self, created: datetime, days: float, chance: random.Random) -> datetime:
        """A moment so many days later on average, and not in the future: no two leads have the same one."""
        later = created + timedelta(days=chance.expovariate(1 / days))
        return later if later < self.newest else created + (self.newest - created) * chance.random()

    @staticmethod
    def _pick(chance: random.Random, values: list[str], weights: list[float]) -> str:
        return chance.choices(values, cum_weights=weights)[0]
