"""Profiles of the property tests: 100 examples each, or 10,000 with HYPOTHESIS_PROFILE=thorough.

`make test-all` uses the second: the properties of all formats then need about 8 CPU minutes.
"""

import os

from hypothesis import HealthCheck, settings

common = {
    "deadline": None,  # the machine may be busy
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("default", max_examples=100, derandomize=True, **common)
settings.register_profile("thorough", max_examples=10_000, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
