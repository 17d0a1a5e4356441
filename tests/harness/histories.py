"""What must hold of every history, whatever happened on the way."""

from __future__ import annotations

WRONG = """
    SELECT count(*) FROM (
        SELECT lead.id FROM lead LEFT JOIN lead_event e ON e.lead_id = lead.id GROUP BY lead.id
        HAVING count(*) FILTER (WHERE e.type = 1) <> 1
            OR min(e.version) <> 1 OR min(e.actor) FILTER (WHERE e.type = 1) <> lead.created_by
            OR min(e.at) FILTER (WHERE e.type = 1) <> lead.created_at
            OR array_agg(e.version ORDER BY e.version) FILTER (WHERE e.type IN (2, 3, 4))
                IS DISTINCT FROM nullif(ARRAY(SELECT generate_series(2, lead.version)), '{}')
            OR count(*) FILTER (WHERE e.type = 5) < lead.resubmissions
            OR count(*) FILTER (WHERE e.type = 7) > 0
        UNION ALL
        SELECT e.lead_id FROM lead_event e LEFT JOIN lead ON lead.id = e.lead_id WHERE lead.id IS NULL
        GROUP BY e.lead_id HAVING count(*) <> 1 OR min(e.type) <> 7
    ) AS wrong
"""
"""Counts the leads whose events do not fit them: one for the creation, one for each later version, one for each
resubmission; and the erased leads that left more than the one event that stays."""
