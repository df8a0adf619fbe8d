"""What all tests share."""

from hypothesis import HealthCheck, settings

# A machine that is busy, as those of CI are, is no failure of the test.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")
