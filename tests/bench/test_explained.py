from __future__ import annotations

from bench.explained import Explained, explained

LOG = """2026-01-01 00:00:00.000 UTC [7] LOG:  duration: 0.050 ms  plan:
\tQuery Text: SELECT lead.id
\tFROM lead WHERE lead.id = $1
\tIndex Scan using pk_lead on lead  (cost=0.42..2.64 rows=1 width=16)
\t  Index Cond: (id = $1)
2026-01-01 00:00:00.001 UTC [7] LOG:  duration: 0.050 ms  plan:
\tQuery Text: SELECT count(*) FROM lead, key_canary
\tAggregate  (cost=1.00..2.00 rows=1 width=8)
\t  ->  Seq Scan on lead  (cost=0.00..1.00 rows=1 width=0)
\t  ->  Seq Scan on key_canary  (cost=0.00..1.00 rows=1 width=0)
2026-01-01 00:00:00.002 UTC [7] WARNING:  something else
"""


def test_only_whole_reads_of_large_tables_are_faults() -> None:
    assert explained(LOG, {"lead"}) == [
        Explained("SELECT count(*) FROM lead, key_canary", (), ("lead",)),
        Explained("SELECT lead.id FROM lead WHERE lead.id = $1", ("pk_lead",), ()),
    ]
