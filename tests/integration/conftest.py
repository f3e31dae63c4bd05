"""What several files of integration tests begin with."""

from __future__ import annotations

import pytest

from tests.pair import Pair
from tests.strategy_case import TABLE, Case


@pytest.fixture
def case(pair: Pair, strategy: str) -> Case:
    """Return the case of one table that has been synced once under a strategy."""
    pair.source.execute(TABLE)
    case = Case(pair, strategy)
    case.begin()
    return case
