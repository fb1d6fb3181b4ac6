"""On PYTHONPATH of some tests' jobs: training takes a second a step while a file stands.

Each step's line of progress is in the log at once.
"""

import os
import time

from megatron_bar.runtime import console
from megatron_bar.training.metrics import Metrics

_log = Metrics.log


def _paced(self, step, **numbers):
    _log(self, step, **numbers)
    if os.path.exists(os.environ["PACED_WHILE"]):
        time.sleep(1)


Metrics.log = _paced
console.LOG_EVERY_SECONDS = 0.5
