from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from bench.soak.__main__ import Turn, take_turns
from bench.soak.flatness import Verdict, back_to_rest, flat_count, flat_memory, slope_of
from bench.soak.report import Soak, text_of, verdicts, write
from bench.soak.sampling import Sample, memory

SECONDS = [10.0 * number for number in range(1, 151)]
HOURS = SECONDS[-1] / 3600
IDLE = Sample(
    at=0.0,
    resident=140.0,
    anonymous=95.0,
    children=36.0,
    tasks=19,
    in_flight=0,
    threads=13,
    handles=41,
    sockets=24,
    connections=18,
    calls={("GetLead", "OK"): 500.0},
)
LOADED = replace(IDLE, tasks=40, in_flight=3, handles=66, sockets=49)


def noisy(seed: int, megabytes: float = 1.0) -> list[float]:
    """Memory that stands still but for steps that last half a minute."""
    rng = random.Random(seed)
    steps = [rng.uniform(-megabytes, megabytes) for _ in range(len(SECONDS) // 3)]
    return [140.0 + steps[index // 3] for index in range(len(SECONDS))]


def soaked(change: Callable[[Sample, float], Sample] = lambda sample, _: sample, after: Sample = IDLE) -> Soak:
    """A run of half an hour; `change` hears how much of it has passed."""
    samples = [
        replace(change(LOADED, at / 1800), at=at, calls={("GetLead", "OK"): 500 + 150 * at})
        for at in (10.0 * number for number in range(1, 181))
    ]
    return Soak(before=IDLE, samples=samples, after=after, warm_up=300.0, killed=150, ended=())


def missed(soak: Soak) -> list[str]:
    return [verdict.text for verdict in verdicts(soak) if not verdict.met]


def test_a_straight_line_has_its_own_slope_and_no_doubt() -> None:
    slope = slope_of(SECONDS, [100 + 6 * second / 3600 for second in SECONDS])
    assert astuple(slope) == pytest.approx((6, 6, 6))


def test_the_interval_holds_the_true_slope() -> None:
    risen = [value + 12 * second / 3600 for value, second in zip(noisy(5), SECONDS, strict=True)]
    slope = slope_of(SECONDS, risen)
    assert slope.low < 12 < slope.high
    assert slope.high - slope.low < 6


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_flat(seed: int) -> None:
    assert flat_memory("memory", SECONDS, noisy(seed)).met


def test_a_leak_is_noticed_through_the_noise() -> None:
    leaking = [value + 10 * second / 3600 for value, second in zip(noisy(1), SECONDS, strict=True)]
    verdict = flat_memory("memory", SECONDS, leaking)
    assert not verdict.met
    assert verdict.row().endswith("| **missed** |")


def test_growth_of_less_than_a_fiftieth_is_forgiven_and_shown() -> None:
    growing = [140 + 2 * second / 3600 for second in SECONDS]
    verdict = flat_memory("memory", SECONDS, growing)
    assert verdict.met
    assert "+2.0 MB an hour (+2.0 to +2.0)" in verdict.measured


def test_memory_that_shrinks_is_flat() -> None:
    assert flat_memory("memory", SECONDS, [140 - 20 * second / 3600 for second in SECONDS]).met


@pytest.mark.parametrize(("counts", "met"), [([20, 30, 20] * 3, True), ([20] * 6 + [26] * 3, False)])
def test_counts_are_compared_by_the_medians_of_their_thirds(counts: Sequence[float], met: bool) -> None:
    assert flat_count("tasks", counts, 5).met is met


def test_one_more_at_rest_is_too_many_where_none_is_allowed() -> None:
    assert back_to_rest("tasks", 19, 19, 0) == Verdict("tasks", "19 → 19", "≤ 19", met=True)
    assert not back_to_rest("tasks", 19, 20, 0).met


def test_a_steady_run_reaches_every_goal() -> None:
    assert missed(soaked()) == []


def test_whatever_leaks_in_a_run_is_named() -> None:
    leaking = soaked(
        lambda sample, passed: replace(sample, resident=140 + 8 * passed, tasks=40 + 100 * passed),
        after=replace(IDLE, tasks=119, handles=43),
    )
    assert missed(leaking) == [
        "memory, resident",
        "tasks of the event loop, first third → last third",
        "tasks of the event loop, idle before → idle after",
        "open file handles, idle before → idle after",
    ]


def test_growth_within_the_warm_up_is_not_judged() -> None:
    assert missed(soaked(lambda sample, passed: replace(sample, resident=140 - 60 * max(0, 1 / 7 - passed)))) == []


def test_a_client_that_ended_by_itself_is_a_fault() -> None:
    assert missed(replace(soaked(), ended=(1,))) == ["clients that ended by themselves"]


def test_the_report_counts_what_was_answered_under_load(tmp_path: Path) -> None:
    run = soaked(after=replace(IDLE, calls={("GetLead", "OK"): 270_500.0, ("GetLead", "CANCELLED"): 3.0}))
    text = text_of(run)
    assert "150 calls a second" in text
    assert "| GetLead | OK | 270,000 |" in text
    assert "| GetLead | CANCELLED | 3 |" in text
    write(run, tmp_path)
    assert (tmp_path / "soak.md").read_text().startswith(text)
    assert (tmp_path / "soak.svg").read_text().count("<polyline") == 9


def test_the_memory_of_a_process_is_seen() -> None:
    resident, anonymous = memory(os.getpid())
    # Not of the heap, where there may be room that was freed before.
    with mmap.mmap(-1, 20_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * len(held))
        more = memory(os.getpid())[1] - anonymous
    assert more >= 15
    assert 0 < anonymous < resident


def test_turns_are_taken_in_the_order_in_which_they_are_due() -> None:
    done: list[str] = []
    began = time.monotonic() - 100
    take_turns(
        [Turn(began + 10, 10, lambda: done.append("sample")), Turn(began + 15, 20, lambda: done.append("kill"))],
        began + 36,
    )
    assert done == ["sample", "kill", "sample", "sample", "kill"]
