from __future__ import annotations

import asyncio

from service.rpc.metrics import Metrics


async def test_tasks_are_counted_when_somebody_asks() -> None:
    metrics = Metrics()
    metrics.watch_tasks(asyncio.get_running_loop())
    registry = metrics.registry
    before = registry.get_sample_value("leadkeep_tasks")
    assert before is not None
    waiting = asyncio.create_task(asyncio.Event().wait())
    assert registry.get_sample_value("leadkeep_tasks") == before + 1
    waiting.cancel()
    await asyncio.wait({waiting})
    assert registry.get_sample_value("leadkeep_tasks") == before
